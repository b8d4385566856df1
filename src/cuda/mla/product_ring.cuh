// c += A B on mma.sync, for sm_80 and newer, by a block of kWarpsM x 2 warps: tiles of kTileM rows and kTileN columns, whose depth passes in
// slices of kTileK through a ring of kStages buffers, filled by cp.async; one barrier a slice.
//
// A tile is multiplied with 2 kTileM kTileN operations a step of depth for (kTileM + kTileN) elements read: 64 operations a byte of L2 with tiles
// of 128 by 128 and 16-bit elements.
#pragma once

#include "cuda/generic/schedule.cuh"
#include "cuda/mla/depth_product.cuh"
#include "cuda/mla/project_params.hpp"

namespace attile::cuda::generic {

// Which way the operands lie in memory, and in the ring: a row each of the tile's rows (A) and columns (B), or a row a step of the depth.
enum class Layout : uint8_t { plain, b_transposed, a_transposed };  // A by rows, B by depth; both by their own; both by depth

// kM: 16-row fragments of a warp; kColumns: of a warp; kBlocks: on a multiprocessor.
template <class Element_, Layout kLayout, int kWarpsM_, int kM_, int kColumns_, int kTileK_, int kStages_, int kBlocks_>
struct RingTraits {
  using Element = Element_;
  static constexpr bool kTransposedA = kLayout == Layout::a_transposed, kTransposedB = kLayout == Layout::b_transposed;
  static constexpr int kThreads = 64 * kWarpsM_, kBlocks = kBlocks_, kM = kM_, kColumns = kColumns_, kStages = kStages_;
  static constexpr int kTileM = 16 * kM * kWarpsM_, kTileN = 2 * kColumns, kTileK = kTileK_;
  static constexpr int kBytes = Element::kBytes, kRowsA = kTransposedA ? kTileK : kTileM, kRowsB = kTransposedB ? kTileN : kTileK;
  static constexpr int kRowBytesA = (kTransposedA ? kTileM : kTileK) * kBytes, kRowBytesB = (kTransposedB ? kTileK : kTileN) * kBytes;
  static constexpr int kStrideA = kRowBytesA + kRowPadding, kStrideB = kRowBytesB + kRowPadding;
  static constexpr int kABytes = kRowsA * kStrideA, kStageBytes = kABytes + kRowsB * kStrideB;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  using Sums = float[kM][kColumns / 8][4];
  static_assert(kSharedBytes <= 99 << 10);
};

// The rows and columns of a warp in the tile.
template <class Traits>
__device__ __forceinline__ int warp_row() {
  return static_cast<int>(threadIdx.x) / 64 * 16 * Traits::kM;
}
template <class Traits>
__device__ __forceinline__ int warp_column() {
  return static_cast<int>(threadIdx.x) / 32 % 2 * Traits::kColumns;
}

// Rows of a slice: `exist` of them, kStride apart from `from` on, of which `valid` bytes exist.
template <int kRows, int kRowBytes, int kThreads>
__device__ __forceinline__ void load_slice(uint32_t to, const char* from, int64_t stride, int exist, int valid, int granule) {
  if (granule == 16 && exist >= kRows) {
    load_whole_rows<kRows, kRowBytes, kThreads>(to, from, stride, valid);
  } else {
    load_rows<kRows, kRowBytes, kThreads>(to, granule, valid,
                                          [&](int row) -> const char* { return row < exist ? from + row * stride : nullptr; });
  }
}

// slices: left(), whether there is one more; load(a, b), its operands to shared memory, zeros where there is nothing; advance().
template <class Traits, class Slices>
__device__ __forceinline__ void multiply_slices(typename Traits::Sums& c, uint32_t base, Slices& slices) {
  using Element = typename Traits::Element;
  const uint32_t a = base + warp_row<Traits>() * (Traits::kTransposedA ? Traits::kBytes : Traits::kStrideA);
  const uint32_t b = base + Traits::kABytes + warp_column<Traits>() * (Traits::kTransposedB ? Traits::kStrideB : Traits::kBytes);
  int loaded = 0;
  const auto load = [&](int stage) {
    if (slices.left()) {
      slices.load(base + stage * Traits::kStageBytes, base + stage * Traits::kStageBytes + Traits::kABytes);
      slices.advance();
      ++loaded;
    }
    ptx::cp_async_commit();
  };
#pragma unroll 1
  for (int i = 0; i < Traits::kStages - 1; ++i) load(i);
  int stage = 0, next = Traits::kStages - 1;
#pragma unroll 1
  for (int i = 0; i < loaded; ++i) {
    ptx::cp_async_wait_groups<Traits::kStages - 2>();
    __syncthreads();
    load(next);
    const uint32_t at = stage * Traits::kStageBytes;
    if constexpr (Traits::kTransposedB) {
      scores_product<Element, Traits::kM, Traits::kColumns, Traits::kRowBytesA / 32, false, Traits::kStrideA>(
          c, a + at + lane_offset_a(Traits::kStrideA), b + at + lane_offset_b(Traits::kStrideB), 0, true);
    } else {
      depth_product<Element, Traits::kM, Traits::kColumns, Traits::kTileK, Traits::kTransposedA, Traits::kStrideA, Traits::kStrideB>(
          c, a + at, b + at);
    }
    stage = stage + 1 < Traits::kStages ? stage + 1 : 0;
    next = next + 1 < Traits::kStages ? next + 1 : 0;
  }
}

// Which tokens of batch b somebody reads; packed: of the one row of all tokens. margin: keys on both sides besides.
__device__ __forceinline__ KeyRange living_rows(const Living& p, int b, int margin) {
  if (p.live == LiveRows::all) return {0, ForwardParams::kUnlimited};
  if (p.q_lengths.packed) return {0, clamp_to(read_index(p.q_lengths.cu, p.sequences), 0, p.q_lengths.rows)};
  int first, seqlen_q, seqlen_k;
  sequence_rows(p.q_lengths, b, first, seqlen_q);
  if (p.live == LiveRows::queries || seqlen_q == 0) return {0, seqlen_q};
  sequence_rows(p.k_lengths, b, first, seqlen_k);
  const int shift = p.bottom_right ? seqlen_k - seqlen_q : 0;
  const Band band{seqlen_k, shift - p.left, shift + p.right};
  return {band.begin(0) - margin, min(seqlen_k, band.end(seqlen_q - 1) + margin)};
}

}  // namespace attile::cuda::generic
