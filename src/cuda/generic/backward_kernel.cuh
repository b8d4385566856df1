// Attention backward on mma.sync, a kernel for each gradient. With P = exp(S - lse), dP = dropout(dO V^T), dS = P (dP - delta),
// delta = sum_d dO O - dlse:
//
//   backward_keys      a block has 64 keys of one key head and walks over the queries that see them, head by head of the group:
//                      dV += P^T dO;  dK += dS^T Q            (S^T = K Q^T and dP^T = V dO^T: P^T is where the A operand is read)
//   backward_queries   a block has 64 queries of one head and walks over their keys:  dQ += dS K
//   backward_bias      a block has 64 x kOther elements of the bias and walks over all pairs that they served:  dbias += dS
//
// No atomics, so the same inputs give the same bits; the price is that S and dP are computed once in each kernel: 7 products for 5. Where
// bits need not repeat, and of 16-bit elements with head dims to 128, the keys are left to backward_joint.cuh.
//
// kDim > 0: all dims of both operands lie in shared memory. kDim 0: S and dP are summed over parts of 64 dims that pass through it, and a
// block has 128 columns of its gradients.
#pragma once

#include "cuda/generic/backward_work.cuh"

namespace attile::cuda::generic {

template <class Element_, int kDim_, int kOther_, bool kGeneral_>
struct BackwardTraits {
  using Element = Element_;
  static constexpr bool kStreamed = kDim_ == 0, kGeneral = kGeneral_;
  static constexpr int kDim = kStreamed ? 64 : kDim_, kColumns = kStreamed ? 128 : kDim_, kOther = kOther_;
  static constexpr int kRowBytes = kDim * Element::kBytes + kRowPadding, kRowBytesC = kColumns * Element::kBytes + kRowPadding;
  static constexpr int kOwnBytes = kBackwardRows * kRowBytes, kOtherBytes = kOther * kRowBytes, kColumnBytes = kOther * kRowBytesC;
  // Two operands of own rows, two of the other side; streamed: the columns of the other side besides.
  static constexpr int kSharedBytes = 2 * (kOwnBytes + kOtherBytes) + (kStreamed ? 2 * kColumnBytes : 0);
};

template <class Traits>
struct BackwardTile {
  using Element = typename Traits::Element;
  static constexpr int kOther = Traits::kOther;
  uint32_t own_a, own_b, other_a, other_b, columns_a, columns_b;

  __device__ explicit BackwardTile(uint32_t base) {
    own_a = base;
    own_b = own_a + Traits::kOwnBytes;
    other_a = own_b + Traits::kOwnBytes;
    other_b = other_a + Traits::kOtherBytes;
    columns_a = Traits::kStreamed ? other_b + Traits::kOtherBytes : other_a;
    columns_b = Traits::kStreamed ? columns_a + Traits::kColumnBytes : other_b;
  }

  struct Side {
    const Tensor* t;
    const char* base;
    int first, end, dims;
  };

  // a: s += own.a other.a^T; likewise b. Ends with a barrier behind it; the other side's columns [column, ..) lie in columns_a and _b.
  __device__ __forceinline__ void multiply(const Side& own_side_a, const Side& other_side_a, const Side& own_side_b,
                                           const Side& other_side_b, int column, bool load_own, bool want_a, bool want_b, bool exact,
                                           float (&a)[1][kOther / 8][4], float (&b)[1][kOther / 8][4]) const {
    const int warp = threadIdx.x / 32;
    constexpr int kSteps = Traits::kDim * Element::kBytes / 32;
    const uint32_t own = warp * 16 * Traits::kRowBytes + lane_offset_a(Traits::kRowBytes), other = lane_offset_b(Traits::kRowBytes);
    __syncthreads();  // the tile before is done with
    if constexpr (Traits::kStreamed) {
      if (want_a)
        load_tile<Element, kOther, Traits::kColumns>(columns_a, *other_side_a.t, other_side_a.base, other_side_a.first, other_side_a.end,
                                                     other_side_a.dims, column);
      if (want_b)
        load_tile<Element, kOther, Traits::kColumns>(columns_b, *other_side_b.t, other_side_b.base, other_side_b.first, other_side_b.end,
                                                     other_side_b.dims, column);
    }
    const int most = Traits::kStreamed ? max(own_side_a.dims, own_side_b.dims) : 1;
    for (int d = 0; d < most; d += Traits::kDim) {
      if (Traits::kStreamed && d > 0) __syncthreads();
      if (Traits::kStreamed || load_own) {
        load_tile<Element, kBackwardRows, Traits::kDim>(own_a, *own_side_a.t, own_side_a.base, own_side_a.first, own_side_a.end,
                                                        own_side_a.dims, d);
        load_tile<Element, kBackwardRows, Traits::kDim>(own_b, *own_side_b.t, own_side_b.base, own_side_b.first, own_side_b.end,
                                                        own_side_b.dims, d);
      }
      load_tile<Element, kOther, Traits::kDim>(other_a, *other_side_a.t, other_side_a.base, other_side_a.first, other_side_a.end,
                                               other_side_a.dims, d);
      load_tile<Element, kOther, Traits::kDim>(other_b, *other_side_b.t, other_side_b.base, other_side_b.first, other_side_b.end,
                                               other_side_b.dims, d);
      ptx::cp_async_wait();
      __syncthreads();
      scores_product<Element, 1, kOther, kSteps, false, Traits::kRowBytes>(a, own_a + own, other_a + other, kSteps, exact);
      scores_product<Element, 1, kOther, kSteps, false, Traits::kRowBytes>(b, own_b + own, other_b + other, kSteps, exact);
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(kBackwardThreads, 2) backward_keys(const __grid_constant__ BackwardParams p) {
  using Element = typename Traits::Element;
  constexpr int kOther = Traits::kOther, kColumns = Traits::kColumns;
  extern __shared__ __align__(128) char shared[];
  __shared__ float lse[kOther], delta[kOther];
  int block = blockIdx.x;
  const int column = block % p.column_parts * kColumns;
  block /= p.column_parts;
  const int tile = block % p.tiles;
  block /= p.tiles;
  const int head_k = block % p.f.heads_k;
  const OwnRows own = find_own_rows<kBackwardRows>(p.f.k_lengths, p.f.batch, tile, p.tiles, block / p.f.heads_k);
  if (own.sequence < 0) {
    if (column == 0) clear_keys<Element, kBackwardThreads>(p, head_k, own);
    return;
  }

  const BackwardTile<Traits> tiles(ptx::shared_address(shared));
  float dk[1][kColumns / 8][4] = {}, dv[1][kColumns / 8][4] = {};
  const Pairing w = pairing_of(p, own.sequence, head_k * p.f.group);
  const int count = min(w.band.seqlen_k, own.first + kBackwardRows);
  const int q0 = max(0, own.first - w.band.high), q1 = min(w.seqlen_q, count - w.band.low);
  bool load_own = true;
  for (int g = 0; g < p.f.group && own.first < count; ++g) {
    const int head = head_k * p.f.group + g;
    for (int q = q0; q < q1; q += kOther) {
      using Side = typename BackwardTile<Traits>::Side;
      float s[1][kOther / 8][4] = {}, dp[1][kOther / 8][4] = {};
      tiles.multiply(Side{&p.f.k, k_base(p.f.k, w), own.first, w.band.seqlen_k, p.f.head_dim},
                     Side{&p.f.q, q_base(p.f.q, w, head), q, w.seqlen_q, p.f.head_dim},
                     Side{&p.f.v, k_base(p.f.v, w), own.first, w.band.seqlen_k, p.f.head_dim_v},
                     Side{&p.dout, q_base(p.dout, w, head), q, w.seqlen_q, p.f.head_dim_v}, column, load_own, true, true, p.f.exact, s, dp);
      load_own = false;
      // Behind the barrier that ended the tile before, and read behind the one below.
      if (threadIdx.x < kOther) {
        lse[threadIdx.x] = lse_of(p, w, head, q + threadIdx.x);
        delta[threadIdx.x] = delta_of(p, w, head, q + threadIdx.x);
      }
      __syncthreads();
      if (__syncthreads_or(any_non_finite(s))) {
        drop_non_finite<Element, kOther, kColumns>(shared + tiles.columns_a - tiles.own_a);
        __syncthreads();
      }
#pragma unroll
      for (int n = 0; n < kOther / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int j = own.first + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + e / 2 * 8, at = 8 * n + lane_column() + e % 2;
          float p_out, ds;
          differentiate<Traits::kGeneral>(p, w, head, q + at, j, lse[at], delta[at], s[0][n][e], dp[0][n][e], p_out, ds);
          s[0][n][e] = p_out;
          dp[0][n][e] = ds;
        }
      const uint32_t lane = lane_offset_values<Element>(Traits::kRowBytesC);
      values_product<Element, 1, kOther, kColumns, false, Traits::kRowBytesC>(dv, s, tiles.columns_b + lane, kColumns, p.f.exact);
      values_product<Element, 1, kOther, kColumns, false, Traits::kRowBytesC>(dk, dp, tiles.columns_a + lane, kColumns, p.f.exact);
    }
  }
  const int stored = p.f.k_lengths.packed ? count : min(p.f.k_lengths.rows, own.first + kBackwardRows),
            row = own.first + threadIdx.x / 32 * 16;
  store_gradient<Element, 1, kColumns>(p.dk, const_cast<char*>(k_base(p.dk, w)), row, count, stored, p.f.head_dim, column, p.f.scale, dk);
  store_gradient<Element, 1, kColumns>(p.dv, const_cast<char*>(k_base(p.dv, w)), row, count, stored, p.f.head_dim_v, column, 1.f, dv);
}

// s <- dS of 64 queries from i0 and kOther keys from j0. Returns whether some q.k was not finite.
template <class Traits>
__device__ __forceinline__ bool score_gradients(const BackwardParams& p, const BackwardTile<Traits>& tiles, const Pairing& w, int head,
                                                int i0, int j0, int column, bool load_own, const float (&lse)[2], const float (&delta)[2],
                                                float (&s)[1][Traits::kOther / 8][4]) {
  using Side = typename BackwardTile<Traits>::Side;
  float dp[1][Traits::kOther / 8][4] = {};
  tiles.multiply(Side{&p.f.q, q_base(p.f.q, w, head), i0, w.seqlen_q, p.f.head_dim},
                 Side{&p.f.k, k_base(p.f.k, w), j0, w.band.seqlen_k, p.f.head_dim},
                 Side{&p.dout, q_base(p.dout, w, head), i0, w.seqlen_q, p.f.head_dim_v},
                 Side{&p.f.v, k_base(p.f.v, w), j0, w.band.seqlen_k, p.f.head_dim_v}, column, load_own, true, false, p.f.exact, s, dp);
  const bool odd = any_non_finite(s);
#pragma unroll
  for (int n = 0; n < Traits::kOther / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = i0 + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + e / 2 * 8, j = j0 + 8 * n + lane_column() + e % 2;
      float p_out, ds;
      differentiate<Traits::kGeneral>(p, w, head, i, j, lse[e / 2], delta[e / 2], s[0][n][e], dp[0][n][e], p_out, ds);
      s[0][n][e] = ds;
    }
  return odd;
}

template <class Traits>
__global__ void __launch_bounds__(kBackwardThreads, 2) backward_queries(const __grid_constant__ BackwardParams p) {
  using Element = typename Traits::Element;
  constexpr int kOther = Traits::kOther, kColumns = Traits::kColumns;
  extern __shared__ __align__(128) char shared[];
  int block = blockIdx.x;
  const int column = block % p.column_parts * kColumns;
  block /= p.column_parts;
  const int tile = block % p.tiles;
  block /= p.tiles;
  const int head = block % p.heads_q;
  const OwnRows own = find_own_rows<kBackwardRows>(p.f.q_lengths, p.f.batch, tile, p.tiles, block / p.heads_q);
  if (own.sequence < 0) {
    if (column == 0) clear_queries<Element, kBackwardThreads>(p, head, own);
    return;
  }
  const BackwardTile<Traits> tiles(ptx::shared_address(shared));
  const Pairing w = pairing_of(p, own.sequence, head);
  const int count = min(w.seqlen_q, own.first + kBackwardRows), row = own.first + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  float dq[1][kColumns / 8][4] = {}, lse[2], delta[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) lse[r] = lse_of(p, w, head, row + 8 * r), delta[r] = delta_of(p, w, head, row + 8 * r);
  if (own.first < count) {
    const int k0 = w.band.begin(own.first), k1 = w.band.end(count - 1);
    for (int key = k0; key < k1; key += kOther) {
      float s[1][kOther / 8][4] = {};
      const bool odd = score_gradients<Traits>(p, tiles, w, head, own.first, key, column, key == k0, lse, delta, s);
      if (__syncthreads_or(odd)) {
        drop_non_finite<Element, kOther, kColumns>(shared + tiles.columns_a - tiles.own_a);
        __syncthreads();
      }
      values_product<Element, 1, kOther, kColumns, false, Traits::kRowBytesC>(
          dq, s, tiles.columns_a + lane_offset_values<Element>(Traits::kRowBytesC), kColumns, p.f.exact);
    }
  }
  const int stored = p.f.q_lengths.packed ? count : min(p.f.q_lengths.rows, own.first + kBackwardRows);
  store_gradient<Element, 1, kColumns>(p.dq, const_cast<char*>(q_base(p.dq, w, head)), own.first + threadIdx.x / 32 * 16, count, stored,
                                       p.f.head_dim, column, p.f.scale, dq);
}

// Grid: tiles of queries (1 where the bias has one), of keys, bias heads, bias batch.
template <class Traits>
__global__ void __launch_bounds__(kBackwardThreads, 2) backward_bias(const __grid_constant__ BackwardParams p, int key_tiles) {
  constexpr int kOther = Traits::kOther;
  extern __shared__ __align__(128) char shared[];
  __shared__ float columns[4][kOther];
  const int (&shape)[4] = p.dbias_shape;
  int block = blockIdx.x;
  const int key_tile = block % key_tiles;
  block /= key_tiles;
  const int tile = block % p.tiles;
  block /= p.tiles;
  const int own_head = block % shape[1], own_batch = block / shape[1];
  const bool all_rows = shape[2] == 1, all_keys = shape[3] == 1;
  const BackwardTile<Traits> tiles(ptx::shared_address(shared));
  float sum[1][kOther / 8][4] = {};
  for (int b = shape[0] == 1 ? 0 : own_batch; b < (shape[0] == 1 ? p.f.batch : own_batch + 1); ++b)
    for (int h = shape[1] == 1 ? 0 : own_head; h < (shape[1] == 1 ? p.heads_q : own_head + 1); ++h) {
      const Pairing w = pairing_of(p, b, h);
      const int i_end = all_rows ? w.seqlen_q : min(w.seqlen_q, (tile + 1) * kBackwardRows);
      for (int i0 = all_rows ? 0 : tile * kBackwardRows; i0 < i_end; i0 += kBackwardRows) {
        const int row = i0 + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
        const float lse[2] = {lse_of(p, w, h, row), lse_of(p, w, h, row + 8)},
                    delta[2] = {delta_of(p, w, h, row), delta_of(p, w, h, row + 8)};
        const int last = min(i0 + kBackwardRows, w.seqlen_q) - 1;
        const int j_end = min(w.band.end(last), all_keys ? w.band.seqlen_k : (key_tile + 1) * kOther);
        bool load_own = true;
        for (int j0 = all_keys ? 0 : key_tile * kOther; j0 < j_end; j0 += kOther) {
          if (j0 + kOther <= w.band.begin(i0)) continue;
          float s[1][kOther / 8][4] = {};
          score_gradients<Traits>(p, tiles, w, h, i0, j0, 0, load_own, lse, delta, s);
          load_own = false;
#pragma unroll
          for (int n = 0; n < kOther / 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[0][n][e] += s[0][n][e];
        }
      }
    }
  // Broadcast keys are summed over a row's lanes, broadcast queries over lanes and warps.
  if (all_keys) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float x = 0.f;
#pragma unroll
      for (int n = 0; n < kOther / 8; ++n) {
        x += sum[0][n][2 * r] + sum[0][n][2 * r + 1];
        sum[0][n][2 * r] = sum[0][n][2 * r + 1] = 0.f;
      }
      sum[0][0][2 * r] = sum_of_row(x);
    }
  }
  const auto at = [&](int i, int j) {
    return const_cast<char*>(p.dbias.data) + own_batch * p.dbias.batch + own_head * p.dbias.head + i * p.dbias.row + j * p.dbias.key;
  };
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (!all_rows) {
#pragma unroll
    for (int n = 0; n < kOther / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = tile * kBackwardRows + warp * 16 + lane / 4 + e / 2 * 8, c = 8 * n + lane_column() + e % 2,
                  j = all_keys ? c : key_tile * kOther + c;
        if (i < shape[2] && j < shape[3] && (!all_keys || c == 0)) give_number(p, p.dbias, at(i, j), sum[0][n][e]);
      }
    return;
  }
#pragma unroll
  for (int n = 0; n < kOther / 8; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float x = sum[0][n][e] + sum[0][n][2 + e];
      for (int d = 4; d < 32; d *= 2) x += __shfl_xor_sync(~0u, x, d);
      if (lane < 4) columns[warp][8 * n + lane_column() + e] = x;
    }
  __syncthreads();
  if (threadIdx.x < kOther) {
    const int c = threadIdx.x, j = all_keys ? c : key_tile * kOther + c;
    if (j < shape[3] && (!all_keys || c == 0))
      give_number(p, p.dbias, at(0, j), columns[0][c] + columns[1][c] + columns[2][c] + columns[3][c]);
  }
}

}  // namespace attile::cuda::generic
