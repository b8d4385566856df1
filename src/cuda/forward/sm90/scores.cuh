// What may happen to a score between Q K^T and the softmax: scale, bias, soft cap; then mask and segment ids.
//   x = s * softmax_scale + bias;  x = softcap * tanh(x / softcap);  -inf where masked or of another segment
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/ptx/math.cuh"
#include "cuda/tile/element.cuh"

namespace attile::cuda::sm90 {

struct ScoreParams {
  float scale;       // softmax_scale
  float softcap;     // 0: none
  const char* bias;  // null, or [batch][head][query][key]; strides in bytes
  DType bias_type;
  int64_t bias_batch, bias_head, bias_row, bias_key;
  int bias_rows, bias_keys;  // those there are; more are never asked for unless lengths on the device break their contract
  bool bias_pairs;           // two neighbouring keys from an even one can be read at once
};

// s <- tanh(k s). kCap: the exponents carry the factor softcap, and k = softmax_scale / softcap.
// An odd polynomial on the FMA units where a warp's scores allow it (relative error 4e-8), for exp2 and reciprocal of every score would keep the
// unit that computes them busy for three times the softmax.
struct CapParams {
  float odd[6];           // tanh(k s) = s (odd[0] + odd[1] s^2 + ...), |s| <= limit
  float limit, exponent;  // else 1 - 2 / (1 + 2^(exponent s))
};
inline CapParams cap_params(double k) {
  constexpr double kLimit = 0.75, kOdd[6] = {1, -0.3333306908607483, 0.13326521217823029, -0.0533902570605278, 0.019664905965328217, -0.0047694845125079155};
  CapParams p{{}, static_cast<float>(kLimit / k), static_cast<float>(2 * 1.4426950408889634 * k)};
  double power = k;
  for (int i = 0; i < 6; ++i, power *= k * k) p.odd[i] = static_cast<float>(kOdd[i] * power);
  return p;
}
template <int kRegs>
__device__ __forceinline__ void cap_scores(float (&s)[kRegs], const CapParams& p) {
  float top[2] = {fabsf(s[0]), fabsf(s[1])};
#pragma unroll
  for (int i = 2; i < kRegs; ++i) top[i % 2] = fmaxf(top[i % 2], fabsf(s[i]));
  if (__any_sync(~0u, fmaxf(top[0], top[1]) > p.limit)) {
#pragma unroll
    for (int i = 0; i < kRegs; ++i) s[i] = fmaf(-2.f, ptx::reciprocal_approx(1.f + ptx::exp2_approx(s[i] * p.exponent)), 1.f);
  } else {
#pragma unroll
    for (int i = 0; i < kRegs; ++i) {
      const float u = s[i] * s[i];
      s[i] *= fmaf(fmaf(fmaf(fmaf(fmaf(p.odd[5], u, p.odd[4]), u, p.odd[3]), u, p.odd[2]), u, p.odd[1]), u, p.odd[0]);
    }
  }
}

// Per query tile: key tiles x to y (exclusive) hold all that may be seen; each query sees all of z to w.
struct TileRanges {
  const int4* tiles;           // null, or [batch][head][query tile]
  int batches, heads, m_tiles;  // steps of the first two (0: shared), how many of the last
};

// Attend iff equal and >= 0. Strides in bytes; wide: int64, else int32.
struct SegmentParams {
  const char *q, *k;  // null, or [batch][row]
  int64_t q_batch, q_row, k_batch, k_row;
  bool q_wide, k_wide;
};

struct MaskBits {
  const uint32_t* bits;      // null, or a bit a key; rows of whole 128s
  int64_t batch, head, row;  // in words
  int rows, words;           // of a plane; words a row
};

// A row's bits of a key tile: those of this thread's columns, 8 i + 2 (thread % 4) and the next, come first in each 8.
template <int N>
__device__ __forceinline__ void load_mask_bits(uint32_t (&x)[2][N / 32], const uint32_t* const (&rows)[2], int j) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if constexpr (N % 128 == 0) {
#pragma unroll
      for (int i = 0; i < N / 128; ++i) {
        const uint4 w = __ldg(reinterpret_cast<const uint4*>(rows[r] + j * (N / 32)) + i);
        x[r][4 * i] = w.x, x[r][4 * i + 1] = w.y, x[r][4 * i + 2] = w.z, x[r][4 * i + 3] = w.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < N / 32; ++i) x[r][i] = __ldg(rows[r] + j * (N / 32) + i);
    }
  }
}
template <int N, int kRegs>
__device__ __forceinline__ void apply_mask_bits(float (&s)[kRegs], const uint32_t (&x)[2][N / 32]) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int c = 0; c < N / 32; ++c) {
      const uint32_t w = x[r][c] >> 2 * (threadIdx.x % 4);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (!(w >> (8 * i + e) & 1)) s[16 * c + 4 * i + 2 * r + e] = -INFINITY;
    }
}

template <class Id>
__device__ __forceinline__ Id load_id(const char* at) {
  return __ldg(reinterpret_cast<const Id*>(at));
}

template <int N, class Id, int kRegs>
__device__ __forceinline__ void mask_segments_of(float (&s)[kRegs], const char* ids_k, int64_t step, const int64_t (&wanted)[2], int seqlen_k, int j) {
  constexpr int64_t kMost = sizeof(Id) == 8 ? INT64_MAX : INT32_MAX;
  Id segment[2];  // -1 meets no key
#pragma unroll
  for (int r = 0; r < 2; ++r) segment[r] = wanted[r] < 0 || wanted[r] > kMost ? Id{-1} : static_cast<Id>(wanted[r]);
  const int column0 = j * N + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < N / 8; ++i)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const Id id = load_id<Id>(ids_k + max(0, min(column0 + 8 * i + e, seqlen_k - 1)) * step);
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (id != segment[r] || id < 0) s[4 * i + 2 * r + e] = -INFINITY;
    }
}

// Scores of keys of other documents become -inf. s: as SoftmaxState; queries: of this thread's rows; row0_q, row0_k: of the sequence. There is at
// least one key in the array.
template <int N, int kRegs>
__device__ __forceinline__ void mask_segments(float (&s)[kRegs], const SegmentParams& p, int batch, int row0_q, const int (&queries)[2], int seqlen_q,
                                              int row0_k, int seqlen_k, int j) {
  const char* ids_q = p.q + batch * p.q_batch + row0_q * p.q_row;
  const char* ids_k = p.k + batch * p.k_batch + (seqlen_k ? row0_k : 0) * p.k_row;
  int64_t wanted[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const char* at = ids_q + max(0, min(queries[r], seqlen_q - 1)) * p.q_row;
    wanted[r] = p.q_wide ? load_id<int64_t>(at) : load_id<int>(at);
  }
  if (p.k_wide) mask_segments_of<N, int64_t>(s, ids_k, p.k_row, wanted, seqlen_k, j);
  else mask_segments_of<N, int>(s, ids_k, p.k_row, wanted, seqlen_k, j);
}

__device__ __forceinline__ float load_bias_number(const char* at, DType type) {
  if (type == DType::f32) return __ldg(reinterpret_cast<const float*>(at));
  if (type == DType::f64) return static_cast<float>(__ldg(reinterpret_cast<const double*>(at)));
  const uint32_t word = __ldg(reinterpret_cast<const uint16_t*>(at));
  return type == DType::bf16 ? __uint_as_float(word << 16) : F16::unpack(word).x;
}

// The bias and the soft cap of kScores: one thread's view of one output tile, its columns 8 i + 2 (thread % 4) and the next of two rows.
// kEarly: there are registers for the bias of the coming key tile.
template <class Element, int N, bool kEarly>
struct Scores {
  const ScoreParams& p;
  uint32_t bias[N / 8][2];  // of the coming key tile, two columns a word, if it is of the inputs' type
  const char* bias_rows[2];

  __device__ __forceinline__ explicit Scores(const ScoreParams& p) : p(p) {}

  __device__ __forceinline__ void begin(int batch, const int (&heads)[2], const int (&queries)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
      bias_rows[r] = p.bias + batch * p.bias_batch + heads[r] * p.bias_head + max(0, min(queries[r], p.bias_rows - 1)) * p.bias_row;
  }

  // Early, for the latency: the bias of key tile j.
  __device__ __forceinline__ void prefetch(int j) {
    if (!kEarly || !p.bias || p.bias_type != Element::kType) return;
    const int column0 = j * N + 2 * (threadIdx.x % 4);
    const bool whole = p.bias_pairs && (j + 1) * N <= p.bias_keys;
#pragma unroll
    for (int i = 0; i < N / 8; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int column = column0 + 8 * i;
        const char* at = bias_rows[r] + column * p.bias_key;
        if (whole) {
          bias[i][r] = __ldg(reinterpret_cast<const uint32_t*>(at));
        } else {
          const uint32_t low = column < p.bias_keys ? __ldg(reinterpret_cast<const uint16_t*>(at)) : 0;
          const uint32_t high = column + 1 < p.bias_keys ? __ldg(reinterpret_cast<const uint16_t*>(at + p.bias_key)) : 0;
          bias[i][r] = low | high << 16;
        }
      }
  }

  // Without a cap a bias of -inf means unseen, whatever the product was.
  __device__ __forceinline__ float biased(float s, float scale, float bias) const {
    return p.softcap == 0.f && bias == -INFINITY ? bias : fmaf(s, scale, bias);
  }
  // read: the two of (i, r).
  template <int kRegs, class Read>
  __device__ __forceinline__ void add(float (&s)[kRegs], float scale, Read read) const {
#pragma unroll
    for (int i = 0; i < N / 8; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float2 two = read(i, r);
        s[4 * i + 2 * r] = biased(s[4 * i + 2 * r], scale, two.x), s[4 * i + 2 * r + 1] = biased(s[4 * i + 2 * r + 1], scale, two.y);
      }
  }

  // Of key tile j.
  template <int kRegs>
  __device__ __forceinline__ void apply(float (&s)[kRegs], float scale, const CapParams& cap, int j) const {
    const int column0 = j * N + 2 * (threadIdx.x % 4);
    const auto place = [&](int i, int r) { return bias_rows[r] + (column0 + 8 * i) * p.bias_key; };
    if (!p.bias) {
#pragma unroll
      for (int i = 0; i < kRegs; ++i) s[i] *= scale;
    } else if (kEarly && p.bias_type == Element::kType) {
      add(s, scale, [&](int i, int r) { return Element::unpack(bias[i][r]); });
    } else if (p.bias_type == DType::f32 && p.bias_pairs && (j + 1) * N <= p.bias_keys) {
      add(s, scale, [&](int i, int r) { return __ldg(reinterpret_cast<const float2*>(place(i, r))); });
    } else if (!kEarly && p.bias_type == Element::kType && p.bias_pairs && (j + 1) * N <= p.bias_keys) {
      add(s, scale, [&](int i, int r) { return Element::unpack(__ldg(reinterpret_cast<const uint32_t*>(place(i, r)))); });
    } else {
      add(s, scale, [&](int i, int r) {
        const int column = column0 + 8 * i;
        const auto number = [&](int e) { return column + e < p.bias_keys ? load_bias_number(place(i, r) + e * p.bias_key, p.bias_type) : 0.f; };
        return make_float2(number(0), number(1));
      });
    }
    if (p.softcap > 0.f) {
      cap_scores(s, cap);
#pragma unroll
      for (int i = 0; i < kRegs; ++i) s[i] *= p.softcap;
    }
  }
};

struct NoScores {
  __device__ explicit NoScores(const ScoreParams&) {}
};

}  // namespace attile::cuda::sm90
