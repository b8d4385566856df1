// Attention backward, all three gradients at once: a block has kKeys keys of one key head and walks over the queries that see them, in
// tiles of 64, head by head of the group:
//
//   S^T = K Q^T;  dP^T = V dO^T;  P = exp(S - lse), dS = P (dP - delta), in registers, then in shared memory as 16-bit numbers
//   dV += P^T dO;  dK += dS^T Q      in registers
//   dQ  = dS K                       added to float32 sums in the workspace, or left to backward_queries where bits must repeat
//
// 5 products of 2 kKeys 64 kDim operations a tile; 64 kDim float32 additions in L2. A warp has 32 keys x 32 queries of S and dP, 32 keys x
// kDim / 2 of dK and dV, 32 queries x kDim / kWarpsK of dQ, so each operand is read from shared memory by few warps. Q and dO of the next tile
// come while dQ is computed.
//
// The sums of dQ lie as the registers of the warps do, 16 bytes a lane; backward_finish reads them so.
#pragma once

#include "cuda/generic/backward_work.cuh"
#include "cuda/ptx/reduce.cuh"

namespace attile::cuda::generic {

template <class Element_, int kDim_, int kKeys_, int kBlocks_, bool kGeneral_>
struct JointTraits {
  using Element = Element_;
  static constexpr bool kGeneral = kGeneral_;
  static constexpr int kDim = kDim_, kKeys = kKeys_, kBlocks = kBlocks_, kQueries = kBackwardRows;
  static constexpr int kWarpsK = kKeys / 32, kThreads = 64 * kWarpsK, kColumns = kDim / 2, kColumnsQ = kDim / kWarpsK;
  static constexpr int kRowBytes = kDim * Element::kBytes + kRowPadding, kPairBytes = kQueries * Element::kBytes + kRowPadding;
  static constexpr int kKeyBytes = kKeys * kRowBytes, kQueryBytes = kQueries * kRowBytes, kPairsBytes = kKeys * kPairBytes;
  static constexpr int kSharedBytes = 2 * (kKeyBytes + kQueryBytes + kPairsBytes) + 2 * kQueries * 4;
  static_assert(Element::kBytes == 2 && kQueries == 64);
};

// The sums of a tile of queries: tiles of sequences follow each other, a packed one begins where no tile of another can be.
__device__ __forceinline__ float* sums_of(const BackwardParams& p, const Pairing& w, int head, int q, int dim) {
  const int64_t tile =
      (p.f.q_lengths.packed ? w.q_first / kBackwardRows + w.sequence : int64_t{w.sequence} * p.sums_tiles) + q / kBackwardRows;
  return p.sums + (tile * p.heads_q + head) * (kBackwardRows * dim);
}

template <class Traits>
struct JointTile {
  using Element = typename Traits::Element;
  uint32_t k, v, q, dout, p, ds, stats;  // stats: lse and delta of the queries
  int keys, queries;                     // of the warp: its first, in the tile

  __device__ explicit JointTile(uint32_t base) {
    k = base;
    v = k + Traits::kKeyBytes;
    q = v + Traits::kKeyBytes;
    dout = q + Traits::kQueryBytes;
    p = dout + Traits::kQueryBytes;
    ds = p + Traits::kPairsBytes;
    stats = ds + Traits::kPairsBytes;
    const int warp = threadIdx.x / 32;
    keys = warp % Traits::kWarpsK * 32;
    queries = warp / Traits::kWarpsK * 32;
  }

  __device__ __forceinline__ void load_keys(const BackwardParams& b, const Pairing& w, int first) const {
    load_tile<Element, Traits::kKeys, Traits::kDim, Traits::kThreads>(k, b.f.k, k_base(b.f.k, w), first, w.band.seqlen_k, b.f.head_dim, 0);
    load_tile<Element, Traits::kKeys, Traits::kDim, Traits::kThreads>(v, b.f.v, k_base(b.f.v, w), first, w.band.seqlen_k, b.f.head_dim_v,
                                                                      0);
  }
  // Rows that do not exist become zero, lse and delta too, and contribute nothing.
  __device__ __forceinline__ void load_queries(const BackwardParams& b, const Pairing& w, int head, int first) const {
    load_tile<Element, Traits::kQueries, Traits::kDim, Traits::kThreads>(q, b.f.q, q_base(b.f.q, w, head), first, w.seqlen_q, b.f.head_dim,
                                                                         0);
    load_tile<Element, Traits::kQueries, Traits::kDim, Traits::kThreads>(dout, b.dout, q_base(b.dout, w, head), first, w.seqlen_q,
                                                                         b.f.head_dim_v, 0);
    if (threadIdx.x < 2 * Traits::kQueries) {
      const int row = threadIdx.x % Traits::kQueries, i = first + row;
      const float* from = (threadIdx.x < Traits::kQueries ? b.row_lse : b.delta) + row_of_head(b, w, head) + i;
      ptx::cp_async_4(stats + threadIdx.x * 4, from, i < w.seqlen_q ? 4 : 0);
    }
  }
  // 16-bit pairs of queries of the warp's 32 x 32, to where `to` begins.
  __device__ __forceinline__ void store_pairs(uint32_t to, const float (&x)[2][4][4]) const {
    const int lane = threadIdx.x % 32;
    to += (keys + lane / 4) * Traits::kPairBytes + (queries + lane % 4 * 2) * 2;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          ptx::store_shared(to + (16 * m + 8 * r) * Traits::kPairBytes + n * 16, Element::pack(x[m][n][2 * r], x[m][n][2 * r + 1]));
  }
};

// s: q.k, dp: dout.v of the warp's 32 keys x 32 queries from j0 and i0; p and ds take their places. seen: all pairs of the tile are.
template <class Traits>
__device__ __forceinline__ void differentiate_tile(const BackwardParams& b, const Pairing& w, int head, int i0, int j0, bool seen,
                                                   const float* lse, const float* delta, float (&s)[2][4][4], float (&dp)[2][4][4]) {
  if (!Traits::kGeneral && seen) {
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float own = lse[8 * n + lane_column() + e], offset = own == -INFINITY ? INFINITY : own * kLog2E,
                    own_delta = delta[8 * n + lane_column() + e];
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            float& x = s[m][n][2 * r + e];
            x = ptx::exp2_approx(fmaf(x, b.f.scale_log2, -offset));
            dp[m][n][2 * r + e] = x * (dp[m][n][2 * r + e] - own_delta);
          }
      }
    return;
  }
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int at = 8 * n + lane_column() + e % 2;
        float p_out, ds;
        differentiate<Traits::kGeneral>(b, w, head, i0 + at, j0 + 16 * m + threadIdx.x % 32 / 4 + e / 2 * 8, lse[at], delta[at], s[m][n][e],
                                        dp[m][n][e], p_out, ds);
        s[m][n][e] = p_out;
        dp[m][n][e] = ds;
      }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocks) backward_joint(const __grid_constant__ BackwardParams b) {
  using Element = typename Traits::Element;
  constexpr int kQueries = Traits::kQueries, kRowBytes = Traits::kRowBytes, kSteps = Traits::kDim * Element::kBytes / 32;
  extern __shared__ __align__(128) char shared[];
  __shared__ Pairing w;  // in shared memory, for registers are scarce
  int block = blockIdx.x;
  const int tile = block % b.tiles;
  block /= b.tiles;
  const int head_k = block % b.f.heads_k;
  const OwnRows own = find_own_rows<Traits::kKeys>(b.f.k_lengths, b.f.batch, tile, b.tiles, block / b.f.heads_k);
  if (own.sequence < 0) {
    clear_keys<Element, Traits::kThreads>(b, head_k, own);
    return;
  }
  if (threadIdx.x == 0) w = pairing_of(b, own.sequence, head_k * b.f.group);
  __syncthreads();

  const JointTile<Traits> t(ptx::shared_address(shared));
  const float* const lse = reinterpret_cast<const float*>(shared + (t.stats - t.k)) + t.queries;
  float dk[2][Traits::kColumns / 8][4] = {}, dv[2][Traits::kColumns / 8][4] = {};
  const int first = own.first, count = min(w.band.seqlen_k, first + Traits::kKeys);
  // Tiles of queries begin at multiples of kQueries, as their sums do.
  const int q0 = max(0, first - w.band.high) & -kQueries, q1 = min(w.seqlen_q, count - w.band.low);
  int q = q0, head = head_k * b.f.group;
  const int end = head + b.f.group;
  if (first < count && q0 < q1) {
    t.load_keys(b, w, first);
    t.load_queries(b, w, head, q);
    for (;;) {
      ptx::cp_async_wait();
      __syncthreads();
      float s[2][4][4] = {}, dp[2][4][4] = {};
      scores_product<Element, 2, 32, kSteps, false, kRowBytes>(s, t.k + t.keys * kRowBytes + lane_offset_a(kRowBytes),
                                                               t.q + t.queries * kRowBytes + lane_offset_b(kRowBytes), kSteps, true);
      scores_product<Element, 2, 32, kSteps, false, kRowBytes>(dp, t.v + t.keys * kRowBytes + lane_offset_a(kRowBytes),
                                                               t.dout + t.queries * kRowBytes + lane_offset_b(kRowBytes), kSteps, true);
      const bool seen = first + Traits::kKeys <= w.band.seqlen_k && q + kQueries - 1 + w.band.low <= first &&
                        q + w.band.high >= first + Traits::kKeys - 1;
      const bool odd = (Traits::kGeneral || !seen) && any_non_finite(s);
      differentiate_tile<Traits>(b, w, head, q + t.queries, first + t.keys, seen, lse, lse + kQueries, s, dp);
      t.store_pairs(t.p, s);
      t.store_pairs(t.ds, dp);
      const bool cleaned = __syncthreads_or(odd);
      if (cleaned) {
        drop_non_finite<Element, kQueries, Traits::kDim, Traits::kThreads>(shared + (t.q - t.k));
        drop_non_finite<Element, Traits::kKeys, Traits::kDim, Traits::kThreads>(shared);
        __syncthreads();
      }
      const uint32_t column = t.queries / 32 * Traits::kColumns * Element::kBytes;
      shared_product<Element, 2, Traits::kColumns, kQueries, false, Traits::kPairBytes, kRowBytes>(dv, t.p + t.keys * Traits::kPairBytes,
                                                                                                   t.dout + column);
      shared_product<Element, 2, Traits::kColumns, kQueries, false, Traits::kPairBytes, kRowBytes>(dk, t.ds + t.keys * Traits::kPairBytes,
                                                                                                   t.q + column);
      const int done = q, done_head = head;
      q += kQueries;
      if (q >= q1) q = q0, ++head;
      __syncthreads();
      if (head < end) t.load_queries(b, w, head, q);
      if (b.sums) {
        float dq[2][Traits::kColumnsQ / 8][4] = {};
        shared_product<Element, 2, Traits::kColumnsQ, Traits::kKeys, true, Traits::kPairBytes, kRowBytes>(
            dq, t.ds + t.queries * Element::kBytes, t.k + t.keys / 32 * Traits::kColumnsQ * Element::kBytes);
        float* sums = sums_of(b, w, done_head, done, Traits::kDim) + threadIdx.x / 32 * (32 * Traits::kColumnsQ) + threadIdx.x % 32 * 4;
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < Traits::kColumnsQ / 8; ++n) ptx::add_to_global(sums + (m * (Traits::kColumnsQ / 8) + n) * 128, dq[m][n]);
      }
      if (head == end) break;
      if (cleaned) {  // the next tile's scores are of the keys as they are
        __syncthreads();
        t.load_keys(b, w, first);
      }
    }
  }
  const int stored = b.f.k_lengths.packed ? count : min(b.f.k_lengths.rows, first + Traits::kKeys),
            column = t.queries / 32 * Traits::kColumns;
  store_gradient<Element, 2, Traits::kColumns>(b.dk, const_cast<char*>(k_base(b.dk, w)), first + t.keys, count, stored, b.f.head_dim,
                                               column, b.f.scale, dk);
  store_gradient<Element, 2, Traits::kColumns>(b.dv, const_cast<char*>(k_base(b.dv, w)), first + t.keys, count, stored, b.f.head_dim_v,
                                               column, 1.f, dv);
}

// dQ out of its sums: a block a tile of queries of a head.
template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads) backward_finish(const __grid_constant__ BackwardParams b) {
  using Element = typename Traits::Element;
  int block = blockIdx.x;
  const int tile = block % b.tiles;
  block /= b.tiles;
  const int head = block % b.heads_q;
  const OwnRows own = find_own_rows<kBackwardRows>(b.f.q_lengths, b.f.batch, tile, b.tiles, block / b.heads_q);
  if (own.sequence < 0) {
    clear_queries<Element, Traits::kThreads>(b, head, own);
    return;
  }
  const Pairing w = pairing_of(b, own.sequence, head);
  const int count = min(w.seqlen_q, own.first + kBackwardRows);
  const int stored = b.f.q_lengths.packed ? count : min(b.f.q_lengths.rows, own.first + kBackwardRows);
  const int warp = threadIdx.x / 32;
  const float* sums = sums_of(b, w, head, own.first, Traits::kDim) + warp * (32 * Traits::kColumnsQ) + threadIdx.x % 32 * 4;
  float dq[2][Traits::kColumnsQ / 8][4];
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < Traits::kColumnsQ / 8; ++n) {
      const float4 x = *reinterpret_cast<const float4*>(sums + (m * (Traits::kColumnsQ / 8) + n) * 128);
      dq[m][n][0] = x.x, dq[m][n][1] = x.y, dq[m][n][2] = x.z, dq[m][n][3] = x.w;
    }
  store_gradient<Element, 2, Traits::kColumnsQ>(b.dq, const_cast<char*>(q_base(b.dq, w, head)), own.first + warp / Traits::kWarpsK * 32,
                                                count, stored, b.f.head_dim, warp % Traits::kWarpsK * Traits::kColumnsQ, b.f.scale, dq);
}

}  // namespace attile::cuda::generic
