// What may happen to a tile of scores between Q K^T and the softmax, in the order of the specification:
//
//   s = softmax_scale * s + bias;  s = softcap * tanh(s / softcap);  s rounded to logits_dtype;  s = -inf where not seen
//
// Masks select, they never add: a NaN at an unseen position is gone. s[m][n][2 r + e] is row r of m, key k0 + 8 n + 2 (lane % 4) + e.
#pragma once

#include <cmath>

#include "cuda/generic/schedule.cuh"
#include "cuda/ptx/global.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/tile/element.cuh"
#include "cuda/tile/rows.cuh"

namespace attile::cuda::generic {

// Query positions and heads of a lane's rows; rows that do not attend repeat the last that does.
template <int kM>
struct LaneRows {
  int position[kM][2], head[kM][2];

  LaneRows() = default;
  __device__ __forceinline__ LaneRows(const ForwardParams& p, const Work& w, int first) {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = w.first + max(0, min(first + 16 * m + 8 * r, w.count - 1));
        position[m][r] = row / p.group;
        head[m][r] = w.head_k * p.group + row - position[m][r] * p.group;
      }
  }
};

// f(m, r, n) for every pair of neighbouring keys.
template <int kM, int kN, class F>
__device__ __forceinline__ void for_each_pair(F f) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int n = 0; n < kN / 8; ++n) f(m, r, n);
}

__device__ __forceinline__ int lane_column() { return threadIdx.x % 4 * 2; }

__device__ __forceinline__ const char* row_of(const Elementwise& x, const Work& w, int head, int position, int key) {
  return x.data + w.sequence * x.batch + head * x.head + position * x.row + key * x.key;
}

// The numbers of one row at key k and the next as T, the second only if it exists.
template <class T, class To, class Convert>
__device__ __forceinline__ void read_pair(const char* at, int64_t key, bool first, bool second, To (&x)[2], Convert convert) {
  x[0] = first ? convert(load_unaligned<T>(at)) : To{};
  x[1] = second ? convert(load_unaligned<T>(at + key)) : To{};
}

// The bias of a lane's scores, of a 16-bit type, out of rows in shared memory from `at` on.
template <int kM, int kN>
struct BiasWords {
  uint32_t word[kM][2][kN / 8];

  __device__ __forceinline__ explicit BiasWords(uint32_t at) {
    constexpr uint32_t kRowBytes = kN * 2 + kRowPadding;
    at += threadIdx.x % 32 / 4 * kRowBytes + lane_column() * 2;
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int n = 0; n < kN / 8; ++n) word[m][r][n] = ptx::load_shared(at + (16 * m + 8 * r) * kRowBytes + n * 16);
  }
};

// s = scale s + bias; without a cap, a bias of -inf means unseen, whatever the product was.
__device__ __forceinline__ float biased(float s, float scale, float bias, bool capped) {
  return !capped && bias == -INFINITY ? bias : fmaf(s, scale, bias);
}

// The smallest of both halves of the words, -inf if one is.
template <class Pair, int kM, int kN>
__device__ __forceinline__ bool has_minus_infinity(const BiasWords<kM, kN>& words) {
  Pair least = reinterpret_cast<const Pair&>(words.word[0][0][0]);
  for_each_pair<kM, kN>([&](int m, int r, int n) { least = __hmin2(least, reinterpret_cast<const Pair&>(words.word[m][r][n])); });
  return fminf(static_cast<float>(least.x), static_cast<float>(least.y)) == -INFINITY;
}

template <class Element, class Pair, int kM, int kN>
__device__ __forceinline__ void add_bias_words_of(const ForwardParams& p, const BiasWords<kM, kN>& words, float (&s)[kM][kN / 8][4]) {
  if (p.softcap == 0.f && has_minus_infinity<Pair, kM, kN>(words)) {
    for_each_pair<kM, kN>([&](int m, int r, int n) {
      const float2 bias = Element::unpack(words.word[m][r][n]);
      s[m][n][2 * r] = biased(s[m][n][2 * r], p.scale, bias.x, false);
      s[m][n][2 * r + 1] = biased(s[m][n][2 * r + 1], p.scale, bias.y, false);
    });
    return;
  }
  for_each_pair<kM, kN>([&](int m, int r, int n) {
    const float2 bias = Element::unpack(words.word[m][r][n]);
    s[m][n][2 * r] = fmaf(s[m][n][2 * r], p.scale, bias.x);
    s[m][n][2 * r + 1] = fmaf(s[m][n][2 * r + 1], p.scale, bias.y);
  });
}

// The bias of a lane's scores in the order of Interleaved, of one head, a tile ahead in registers: sixteen bytes are eight keys of a row, which
// exist together.
template <int kM, int kN>
struct BiasRegisters {
  const char* at[kM][2];  // of the lane's rows, at its first key of the tile that is loaded next
  uint4 words[kM][2][kN / 32];

  __device__ __forceinline__ BiasRegisters(const ForwardParams& p, const Work& w, int first, int key) {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        at[m][r] = row_of(p.bias, w, w.head_k, w.first + max(0, min(first + 16 * m + 8 * r, w.count - 1)), key) +
                   Interleaved::row(lane_column()) * 2;
  }
  // The tile from `key` on.
  __device__ __forceinline__ void load(int key, int seqlen_k) {
    key += Interleaved::row(lane_column());
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int part = 0; part < kN / 32; ++part)
          if (key + part * 32 < seqlen_k) words[m][r][part] = ptx::load_global_16(at[m][r] + part * 64);
        at[m][r] += kN * 2;
      }
  }
  // s = scale s + bias
  template <class Element>
  __device__ __forceinline__ void add(float scale, float (&s)[kM][kN / 8][4]) const {
    for_each_pair<kM, kN>([&](int m, int r, int n) {
      const uint4& four = words[m][r][n / 4];
      const float2 x = Element::unpack(n % 4 == 0 ? four.x : n % 4 == 1 ? four.y : n % 4 == 2 ? four.z : four.w);
      s[m][n][2 * r] = fmaf(s[m][n][2 * r], scale, x.x);
      s[m][n][2 * r + 1] = fmaf(s[m][n][2 * r + 1], scale, x.y);
    });
  }
  // A bias of -inf means unseen, also where its sum with the product is NaN. tiles: how many have been loaded since that of s, and it.
  template <class Element>
  __device__ __forceinline__ void mend(float (&s)[kM][kN / 8][4], int tiles) const {
    for_each_pair<kM, kN>([&](int m, int r, int n) {
      const char* from = at[m][r] - tiles * kN * 2 + Interleaved::row(8 * n) * 2;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = s[m][n][2 * r + e];
        if (x != x && *reinterpret_cast<const typename Element::Storage*>(from + 2 * e) == (Element::kExponent | 0x8000)) x = -INFINITY;
      }
    });
  }
};

template <int kM, int kN>
__device__ __forceinline__ void add_bias_words(const ForwardParams& p, const BiasWords<kM, kN>& words, float (&s)[kM][kN / 8][4]) {
  if (p.bias.dtype == DType::bf16) {
    add_bias_words_of<Bf16, __nv_bfloat162, kM, kN>(p, words, s);
  } else {
    add_bias_words_of<F16, __half2, kM, kN>(p, words, s);
  }
}

template <class T, int kM, int kN, class Convert>
__device__ __forceinline__ void add_bias_of(const ForwardParams& p, const Work& w, const LaneRows<kM>& rows, int k0,
                                            float (&s)[kM][kN / 8][4], Convert convert) {
  const bool capped = p.softcap != 0.f;
  for_each_pair<kM, kN>([&](int m, int r, int n) {
    const int key = k0 + 8 * n + lane_column();
    const char* at = row_of(p.bias, w, rows.head[m][r], rows.position[m][r], key);
    float bias[2];
    read_pair<T>(at, p.bias.key, key < w.band.seqlen_k, key + 1 < w.band.seqlen_k, bias, convert);
    s[m][n][2 * r] = biased(s[m][n][2 * r], p.scale, bias[0], capped);
    s[m][n][2 * r + 1] = biased(s[m][n][2 * r + 1], p.scale, bias[1], capped);
  });
}

template <int kM, int kN>
__device__ __forceinline__ void add_bias(const ForwardParams& p, const Work& w, const LaneRows<kM>& rows, int k0,
                                         float (&s)[kM][kN / 8][4]) {
  switch (p.bias.dtype) {
    case DType::bf16:
      return add_bias_of<uint16_t, kM, kN>(p, w, rows, k0, s, [](uint16_t x) { return __uint_as_float(static_cast<uint32_t>(x) << 16); });
    case DType::f16:
      return add_bias_of<uint16_t, kM, kN>(p, w, rows, k0, s, [](uint16_t x) { return __half2float(__ushort_as_half(x)); });
    case DType::f32:
      return add_bias_of<uint32_t, kM, kN>(p, w, rows, k0, s, [](uint32_t x) { return __uint_as_float(x); });
    default:
      return add_bias_of<uint64_t, kM, kN>(p, w, rows, k0, s,
                                           [](uint64_t x) { return __double2float_rn(__longlong_as_double(static_cast<long long>(x))); });
  }
}

template <class T, int kM, int kN>
__device__ __forceinline__ void apply_mask_of(const ForwardParams& p, const Work& w, const LaneRows<kM>& rows, int k0,
                                              float (&s)[kM][kN / 8][4]) {
  for_each_pair<kM, kN>([&](int m, int r, int n) {
    const int key = k0 + 8 * n + lane_column();
    const char* at = row_of(p.mask, w, rows.head[m][r], rows.position[m][r], key);
    const bool both = key + 1 < w.band.seqlen_k;
    bool attend[2];
    if (sizeof(T) == 1 && p.mask.pairs && both) {
      const uint16_t two = __ldg(reinterpret_cast<const uint16_t*>(at));
      attend[0] = two & 0xff, attend[1] = two >> 8;
    } else {
      read_pair<T>(at, p.mask.key, key < w.band.seqlen_k, both, attend, [](T x) { return x != 0; });
    }
    if (!attend[0]) s[m][n][2 * r] = -INFINITY;
    if (!attend[1]) s[m][n][2 * r + 1] = -INFINITY;
  });
}

template <int kM, int kN>
__device__ __forceinline__ void apply_mask(const ForwardParams& p, const Work& w, const LaneRows<kM>& rows, int k0,
                                           float (&s)[kM][kN / 8][4]) {
  switch (p.mask.dtype) {
    case DType::boolean:
    case DType::i8:
    case DType::u8:
      return apply_mask_of<uint8_t, kM, kN>(p, w, rows, k0, s);
    case DType::i16:
    case DType::u16:
      return apply_mask_of<uint16_t, kM, kN>(p, w, rows, k0, s);
    case DType::i32:
    case DType::u32:
      return apply_mask_of<uint32_t, kM, kN>(p, w, rows, k0, s);
    default:
      return apply_mask_of<uint64_t, kM, kN>(p, w, rows, k0, s);
  }
}

__device__ __forceinline__ int64_t read_id(const Ids& ids, int batch, int row) {
  return read_index({ids.data + batch * ids.batch, ids.row, ids.wide}, row);
}

template <int kM, int kN>
__device__ __forceinline__ void apply_segments(const ForwardParams& p, const Work& w, const LaneRows<kM>& rows, int k0,
                                               float (&s)[kM][kN / 8][4]) {
  int64_t own[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) own[m][r] = read_id(p.q_ids, w.q_batch, w.q_first + rows.position[m][r]);
#pragma unroll
  for (int n = 0; n < kN / 8; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int key = k0 + 8 * n + lane_column() + e;
      const int64_t id = key < w.band.seqlen_k ? read_id(p.k_ids, w.k_batch, w.k_first + key) : -1;
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          if (id < 0 || id != own[m][r]) s[m][n][2 * r + e] = -INFINITY;
    }
}

// -inf outside the band.
template <int kM, int kN, class Order = InOrder>
__device__ __forceinline__ void apply_band(const Band& band, const LaneRows<kM>& rows, int k0, float (&s)[kM][kN / 8][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int column0 = k0 + Order::row(lane_column()), begin = band.begin(rows.position[m][r]) - column0,
                end = band.end(rows.position[m][r]) - column0;
#pragma unroll
      for (int n = 0; n < kN / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (Order::row(8 * n + e) < begin || Order::row(8 * n + e) >= end) s[m][n][2 * r + e] = -INFINITY;
    }
}

// All but the band, on scores of Q K^T. kStaged, and bias: whether and where p.bias.pairs lies in shared memory, from the warp's first row on.
template <bool kStaged, int kM, int kN>
__device__ __forceinline__ void finish_scores(const ForwardParams& p, const Work& w, const LaneRows<kM>& rows, uint32_t bias, int k0,
                                              float (&s)[kM][kN / 8][4]) {
  const auto each = [&](auto f) {
    for_each_pair<kM, kN>([&](int m, int r, int n) {
      s[m][n][2 * r] = f(s[m][n][2 * r]);
      s[m][n][2 * r + 1] = f(s[m][n][2 * r + 1]);
    });
  };
  if (!p.bias.data) {
    each([&](float x) { return x * p.scale; });
  } else if (kStaged && p.bias.pairs) {
    add_bias_words<kM, kN>(p, BiasWords<kM, kN>(bias), s);
  } else {
    add_bias<kM, kN>(p, w, rows, k0, s);
  }
  if (p.softcap != 0.f) {
    const float inverse = 1.f / p.softcap;
    each([&](float x) { return p.softcap * tanhf(x * inverse); });
  }
  if (p.logits_dtype == DType::bf16) each([](float x) { return __bfloat162float(__float2bfloat16_rn(x)); });
  if (p.logits_dtype == DType::f16) each([](float x) { return __half2float(__float2half_rn(x)); });
  if (p.mask.data) apply_mask<kM, kN>(p, w, rows, k0, s);
  if (p.k_ids.data) apply_segments<kM, kN>(p, w, rows, k0, s);
}

}  // namespace attile::cuda::generic
