// Which rows a block of a backward kernel has, and what a pair of query and key contributes.
#pragma once

#include "cuda/generic/backward_params.hpp"
#include "cuda/generic/softmax.cuh"
#include "cuda/tile/product.cuh"
#include "cuda/tile/rows.cuh"

namespace attile::cuda::generic {

inline constexpr int kBackwardThreads = 128, kBackwardRows = 64;  // of a block, where a kernel does not say otherwise; 16 rows a warp

// Tile `tile` of kRows rows, over sequences laid side by side. sequence < 0: left over, the left-th of `over` such tiles.
struct OwnRows {
  int sequence, first, left, over;
};

template <int kRows>
__device__ inline OwnRows find_own_rows(const Lengths& lengths, int batch, int tile, int tiles, int tile_batch) {
  if (!lengths.packed) return {tile_batch, tile * kRows, 0, 0};
  int before = 0;
  const int lane = threadIdx.x % 32;
  for (int from = 0; from < batch; from += 32) {
    int first, length, count = 0;
    if (from + lane < batch) {
      sequence_rows(lengths, from + lane, first, length);
      count = (length + kRows - 1) / kRows;
    }
    int sum = count;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += other;
    }
    const unsigned has = __ballot_sync(~0u, before + sum > tile);
    if (has) {
      const int source = __ffs(has) - 1;
      const int own = __shfl_sync(~0u, sum - count, source);
      return {from + source, (tile - before - own) * kRows, 0, 0};
    }
    before += __shfl_sync(~0u, sum, 31);
  }
  return {-1, 0, tile - before, tiles - before};
}

// A sequence and a key head.
struct Pairing {
  int sequence, head_k;
  int q_batch, k_batch, q_first, k_first, seqlen_q;
  Band band;
};

__device__ inline Pairing pairing_of(const BackwardParams& p, int sequence, int head) {
  Pairing w;
  w.sequence = sequence;
  w.head_k = head / p.f.group;
  int seqlen_k;
  sequence_rows(p.f.q_lengths, sequence, w.q_first, w.seqlen_q);
  sequence_rows(p.f.k_lengths, sequence, w.k_first, seqlen_k);
  w.q_batch = p.f.q_lengths.packed ? 0 : sequence;
  w.k_batch = p.f.k_lengths.packed ? 0 : sequence;
  const int shift = p.f.bottom_right ? seqlen_k - w.seqlen_q : 0;
  w.band = {seqlen_k, shift - p.f.left, shift + p.f.right};
  return w;
}

__device__ __forceinline__ float read_bias(const Elementwise& x, const char* at) {
  switch (x.dtype) {
    case DType::bf16:
      return __uint_as_float(static_cast<uint32_t>(load_unaligned<uint16_t>(at)) << 16);
    case DType::f16:
      return __half2float(__ushort_as_half(load_unaligned<uint16_t>(at)));
    case DType::f32:
      return __uint_as_float(load_unaligned<uint32_t>(at));
    default:
      return __double2float_rn(__longlong_as_double(static_cast<long long>(load_unaligned<uint64_t>(at))));
  }
}

__device__ __forceinline__ void store_number(const Elementwise& x, char* at, float value) {
  if (x.dtype == DType::bf16) {
    store_unaligned<uint16_t>(at, __bfloat16_as_ushort(__float2bfloat16_rn(value)));
  } else if (x.dtype == DType::f16) {
    store_unaligned<uint16_t>(at, __half_as_ushort(__float2half_rn(value)));
  } else if (x.dtype == DType::f32) {
    store_unaligned<uint32_t>(at, __float_as_uint(value));
  } else {
    store_unaligned<uint64_t>(at, static_cast<uint64_t>(__double_as_longlong(value)));
  }
}

// To dbias or dsinks.
__device__ __forceinline__ void give_number(const BackwardParams& p, const Elementwise& x, char* at, float value) {
  store_number(x, at, p.adds ? read_bias(x, at) + value : value);
}

// By cases: the table of dtypes is the host's alone.
__device__ __forceinline__ bool read_mask(const Elementwise& x, const char* at) {
  switch (x.dtype) {
    case DType::boolean:
    case DType::i8:
    case DType::u8:
      return *at != 0;
    case DType::i16:
    case DType::u16:
      return load_unaligned<uint16_t>(at) != 0;
    case DType::i32:
    case DType::u32:
      return load_unaligned<uint32_t>(at) != 0;
    default:
      return load_unaligned<uint64_t>(at) != 0;
  }
}

// One pair: product = q.k and dproduct = dout.v in; p, as it met v, and ds, the gradient of softmax_scale q.k + bias, out.
//   p = exp(s - lse);  dp = dropout(dproduct);  ds = p (dp - delta) slope of the cap
template <bool kGeneral>
__device__ __forceinline__ void differentiate(const BackwardParams& p, const Pairing& w, int head, int i, int j, float lse, float delta,
                                              float product, float dproduct, float& p_out, float& ds) {
  const ForwardParams& f = p.f;
  p_out = ds = 0.f;
  if (i >= w.seqlen_q || j >= w.band.end(i) || j < w.band.begin(i) || lse == -INFINITY) return;
  float s = product * f.scale, slope = 1.f, kept = 1.f;
  if constexpr (kGeneral) {
    if (f.bias.data) {
      const float bias = read_bias(f.bias, f.bias.data + w.sequence * f.bias.batch + head * f.bias.head + i * f.bias.row + j * f.bias.key);
      if (f.softcap == 0.f && bias == -INFINITY) return;
      s += bias;
    }
    if (f.mask.data && !read_mask(f.mask, f.mask.data + w.sequence * f.mask.batch + head * f.mask.head + i * f.mask.row + j * f.mask.key))
      return;
    if (f.k_ids.data) {
      const int64_t id = read_id(f.k_ids, w.k_batch, w.k_first + j);
      if (id < 0 || id != read_id(f.q_ids, w.q_batch, w.q_first + i)) return;
    }
    if (f.softcap != 0.f) {
      const float t = tanhf(s / f.softcap);
      s = f.softcap * t;
      slope = 1.f - t * t;
    }
    if (f.logits_dtype == DType::bf16) s = __bfloat162float(__float2bfloat16_rn(s));
    if (f.logits_dtype == DType::f16) s = __half2float(__float2half_rn(s));
    if (f.dropout) {
      const PhiloxBlock words =
          philox4x32_10(Dropout::counter(f.dropout_sequence + w.sequence, f.dropout_head + head, i, j), f.dropout_seed);
      const uint32_t word = i >> 3 & 1 ? (j & 1 ? words[3] : words[2]) : (j & 1 ? words[1] : words[0]);
      kept = word >= f.dropout_threshold ? f.dropout_scale : 0.f;
    }
  }
  const float probability = ptx::exp2_approx((s - lse) * kLog2E);
  p_out = probability * kept;
  ds = probability * (dproduct * kept - delta) * slope;
}

// Where a head's rows of a sequence begin in [q batch][head][row], the order of what backward_rows leaves.
__device__ __forceinline__ int64_t row_of_head(const BackwardParams& p, const Pairing& w, int head) {
  return (static_cast<int64_t>(w.q_batch) * p.heads_q + head) * p.f.q_lengths.rows + w.q_first;
}
__device__ __forceinline__ float lse_of(const BackwardParams& p, const Pairing& w, int head, int i) {
  return i < w.seqlen_q ? p.row_lse[row_of_head(p, w, head) + i] : -INFINITY;
}
__device__ __forceinline__ float delta_of(const BackwardParams& p, const Pairing& w, int head, int i) {
  return i < w.seqlen_q ? p.delta[row_of_head(p, w, head) + i] : 0.f;
}

// Rows first .. first + kRows of a tensor's dims [column, column + kDim); `end` rows exist. base: of row 0 and the head.
template <class Element, int kRows, int kDim, int kThreads = kBackwardThreads>
__device__ __forceinline__ void load_tile(uint32_t to, const Tensor& t, const char* base, int first, int end, int dims, int column) {
  constexpr int kBytes = kDim * Element::kBytes;
  const int valid = dims * Element::kBytes - column * Element::kBytes;
  base += column * Element::kBytes;
  if (t.granule == 16 && first + kRows <= end) {
    load_whole_rows<kRows, kBytes, kThreads>(to, base + static_cast<int64_t>(first) * t.row, t.row, valid);
  } else {
    load_rows<kRows, kBytes, kThreads>(to, t.granule, valid, [&](int row) -> const char* {
      return first + row < end ? base + static_cast<int64_t>(first + row) * t.row : nullptr;
    });
  }
}

__device__ __forceinline__ const char* q_base(const Tensor& t, const Pairing& w, int head) {
  return t.data + w.q_batch * t.batch + w.q_first * t.row + head * t.head;
}
__device__ __forceinline__ const char* k_base(const Tensor& t, const Pairing& w) {
  return t.data + w.k_batch * t.batch + w.k_first * t.row + w.head_k * t.head;
}

// A key that a query does not see may hold anything: its scores are dropped, but 0 times NaN is NaN in the product that follows. Where the
// products of a tile are not all finite, what is not finite in its rows becomes 0; who sees such a row has NaN already.
template <class Element, int kRows, int kDim, int kThreads = kBackwardThreads>
__device__ __forceinline__ void drop_non_finite(char* rows) {
  using Storage = typename Element::Storage;
  constexpr int kStride = kDim * Element::kBytes + kRowPadding;
#pragma unroll 1
  for (int at = threadIdx.x; at < kRows * kDim; at += kThreads) {
    Storage& x = *reinterpret_cast<Storage*>(rows + at / kDim * kStride + at % kDim * Element::kBytes);
    if ((x & Element::kExponent) == Element::kExponent) x = 0;
  }
}

template <int kM, int kN>
__device__ __forceinline__ bool any_non_finite(const float (&s)[kM][kN][4]) {
  bool odd = false;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) odd = odd || !(fabsf(s[m][n][e]) < INFINITY);
  return odd;
}

// A warp's 16 kM rows of a gradient from `first` on: columns [column, column + kColumns), zero in rows from `count` on, of which `stored` exist.
template <class Element, int kM, int kColumns>
__device__ __forceinline__ void store_gradient(const Tensor& t, char* base, int first, int count, int stored, int dims, int column,
                                               float scale, const float (&x)[kM][kColumns / 8][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first + threadIdx.x % 32 / 4 + 16 * m + 8 * r;
      if (row >= stored) continue;
      const bool seen = row < count;
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        const int d = column + 8 * n + lane_column();
        if (d >= dims) continue;
        store_pair<Element>(base + row * t.row + d * Element::kBytes, seen ? x[m][n][2 * r] * scale : 0.f,
                            seen ? x[m][n][2 * r + 1] * scale : 0.f, d + 1 < dims);
      }
    }
}

// Zeros in the rows that no sequence has, of a block that was left over.
template <class Element, int kThreads>
__device__ __forceinline__ void clear_gradient(const Tensor& t, const Lengths& lengths, int batch, int head, const OwnRows& own, int dims) {
  const int64_t end = batch > 0 ? read_index(lengths.cu, batch) : 0;
  for (int row = clamp_to(end, 0, lengths.rows) + own.left; row < lengths.rows; row += own.over)
    for (int d = threadIdx.x; d < dims; d += kThreads)
      store_unaligned<typename Element::Storage>(t.data + row * t.row + head * t.head + d * Element::kBytes, 0);
}
template <class Element, int kThreads>
__device__ __forceinline__ void clear_queries(const BackwardParams& p, int head, const OwnRows& own) {
  clear_gradient<Element, kThreads>(p.dq, p.f.q_lengths, p.f.batch, head, own, p.f.head_dim);
}
template <class Element, int kThreads>
__device__ __forceinline__ void clear_keys(const BackwardParams& p, int head_k, const OwnRows& own) {
  clear_gradient<Element, kThreads>(p.dk, p.f.k_lengths, p.f.batch, head_k, own, p.f.head_dim);
  clear_gradient<Element, kThreads>(p.dv, p.f.k_lengths, p.f.batch, head_k, own, p.f.head_dim_v);
}

}  // namespace attile::cuda::generic
