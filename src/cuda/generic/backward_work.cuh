// Which rows a block of a backward kernel has, and what a pair of query and key contributes.
#pragma once

#include "cuda/generic/backward_params.hpp"
#include "cuda/generic/softmax.cuh"
#include "cuda/tile/product.cuh"
#include "cuda/tile/rows.cuh"

namespace attile::cuda::generic {

inline constexpr int kBackwardThreads = 128, kBackwardRows = 64;  // rows a block owns, 16 a warp

// Tile `tile` of kBackwardRows rows, over sequences laid side by side. sequence < 0: left over, the left-th of `over` such tiles.
struct OwnRows {
  int sequence, first, left, over;
};

__device__ inline OwnRows find_own_rows(const Lengths& lengths, int batch, int tile, int tiles, int tile_batch) {
  if (!lengths.packed) return {tile_batch, tile * kBackwardRows, 0, 0};
  int before = 0;
  const int lane = threadIdx.x % 32;
  for (int from = 0; from < batch; from += 32) {
    int first, length, count = 0;
    if (from + lane < batch) {
      sequence_rows(lengths, from + lane, first, length);
      count = (length + kBackwardRows - 1) / kBackwardRows;
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
      return {from + source, (tile - before - own) * kBackwardRows, 0, 0};
    }
    before += __shfl_sync(~0u, sum, 31);
  }
  return {-1, 0, tile - before, tiles - before};
}

// A sequence and a query head, with its key head.
struct Pairing {
  int sequence, head, head_k;
  int q_batch, k_batch, q_first, k_first, seqlen_q;
  Band band;
};

__device__ inline Pairing pairing_of(const BackwardParams& p, int sequence, int head) {
  Pairing w;
  w.sequence = sequence;
  w.head = head;
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

__device__ __forceinline__ bool read_mask(const Elementwise& x, const char* at) {
  switch (size_of(x.dtype)) {
    case 1:
      return *at != 0;
    case 2:
      return load_unaligned<uint16_t>(at) != 0;
    case 4:
      return load_unaligned<uint32_t>(at) != 0;
    default:
      return load_unaligned<uint64_t>(at) != 0;
  }
}

// One pair: product = q.k and dproduct = dout.v in; p, as it met v, and ds, the gradient of softmax_scale q.k + bias, out.
//   p = exp(s - lse);  dp = dropout(dproduct);  ds = p (dp - delta) slope of the cap
template <bool kGeneral>
__device__ __forceinline__ void differentiate(const BackwardParams& p, const Pairing& w, int i, int j, float lse, float delta,
                                              float product, float dproduct, float& p_out, float& ds) {
  const ForwardParams& f = p.f;
  p_out = ds = 0.f;
  if (i >= w.seqlen_q || j >= w.band.end(i) || j < w.band.begin(i) || lse == -INFINITY) return;
  float s = product * f.scale, slope = 1.f, kept = 1.f;
  if constexpr (kGeneral) {
    if (f.bias.data) {
      const float bias =
          read_bias(f.bias, f.bias.data + w.sequence * f.bias.batch + w.head * f.bias.head + i * f.bias.row + j * f.bias.key);
      if (f.softcap == 0.f && bias == -INFINITY) return;
      s += bias;
    }
    if (f.mask.data && !read_mask(f.mask, f.mask.data + w.sequence * f.mask.batch + w.head * f.mask.head + i * f.mask.row + j * f.mask.key))
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
          philox4x32_10(Dropout::counter(f.dropout_sequence + w.sequence, f.dropout_head + w.head, i, j), f.dropout_seed);
      const uint32_t word = i >> 3 & 1 ? (j & 1 ? words[3] : words[2]) : (j & 1 ? words[1] : words[0]);
      kept = word >= f.dropout_threshold ? f.dropout_scale : 0.f;
    }
  }
  const float probability = ptx::exp2_approx((s - lse) * kLog2E);
  p_out = probability * kept;
  ds = probability * (dproduct * kept - delta) * slope;
}

__device__ __forceinline__ float lse_of(const BackwardParams& p, const Pairing& w, int i) {
  return i < w.seqlen_q ? p.f.lse[w.q_batch * p.f.lse_batch + w.head * p.f.lse_head + (w.q_first + i) * p.f.lse_row] : -INFINITY;
}

__device__ __forceinline__ float delta_of(const BackwardParams& p, const Pairing& w, int i) {
  return i < w.seqlen_q ? p.delta[(static_cast<int64_t>(w.q_batch) * p.heads_q + w.head) * p.f.q_lengths.rows + w.q_first + i] : 0.f;
}

// Rows first .. first + kRows of a tensor's dims [column, column + kDim); `end` rows exist. base: of row 0 and the head.
template <class Element, int kRows, int kDim>
__device__ __forceinline__ void load_tile(uint32_t to, const Tensor& t, const char* base, int first, int end, int dims, int column) {
  const int offset = column * Element::kBytes;
  load_rows<kRows, kDim * Element::kBytes, kBackwardThreads>(to, t.granule, (dims - column) * Element::kBytes, [&](int row) -> const char* {
    return first + row < end ? base + static_cast<int64_t>(first + row) * t.row + offset : nullptr;
  });
}

__device__ __forceinline__ const char* q_base(const Tensor& t, const Pairing& w) {
  return t.data + w.q_batch * t.batch + w.q_first * t.row + w.head * t.head;
}
__device__ __forceinline__ const char* k_base(const Tensor& t, const Pairing& w) {
  return t.data + w.k_batch * t.batch + w.k_first * t.row + w.head_k * t.head;
}

// A key that a query does not see may hold anything: its scores are dropped, but 0 times NaN is NaN in the product that follows. Where the
// products of a tile are not all finite, what is not finite in its rows becomes 0; who sees such a row has NaN already. Ends with a
// barrier where `odd` is true for a thread.
template <class Element, int kRows, int kDim>
__device__ __forceinline__ void drop_non_finite(char* rows, bool odd) {
  if (!__syncthreads_or(odd)) return;
  using Storage = typename Element::Storage;
  constexpr int kStride = kDim * Element::kBytes + kRowPadding;
  for (int at = threadIdx.x; at < kRows * kDim; at += kBackwardThreads) {
    Storage& x = *reinterpret_cast<Storage*>(rows + at / kDim * kStride + at % kDim * Element::kBytes);
    if ((x & Element::kExponent) == Element::kExponent) x = 0;
  }
  __syncthreads();
}

template <int kOther>
__device__ __forceinline__ bool any_non_finite(const float (&s)[1][kOther / 8][4]) {
  bool odd = false;
#pragma unroll
  for (int n = 0; n < kOther / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) odd = odd || !(fabsf(s[0][n][e]) < INFINITY);
  return odd;
}

// A warp's 16 rows of a gradient: columns [column, column + kColumns) of rows first.. of `stored`, zero from `count` on.
template <class Element, int kColumns>
__device__ __forceinline__ void store_gradient(const Tensor& t, char* base, int first, int count, int stored, int dims, int column,
                                               float scale, const float (&x)[1][kColumns / 8][4]) {
  const int lane_row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first + lane_row + 8 * r;
    if (row >= stored) continue;
    const bool seen = row < count;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      const int d = column + 8 * n + lane_column();
      if (d >= dims) continue;
      store_pair<Element>(base + row * t.row + d * Element::kBytes, seen ? x[0][n][2 * r] * scale : 0.f,
                          seen ? x[0][n][2 * r + 1] * scale : 0.f, d + 1 < dims);
    }
  }
}

// Zeros in the rows that no sequence has.
template <class Element>
__device__ __forceinline__ void clear_gradient(const Tensor& t, int head, int from, int step, int end, int dims) {
  for (int row = from; row < end; row += step)
    for (int d = threadIdx.x; d < dims; d += kBackwardThreads)
      store_unaligned<typename Element::Storage>(t.data + row * t.row + head * t.head + d * Element::kBytes, 0);
}

}  // namespace attile::cuda::generic
