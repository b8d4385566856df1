// C = A W on mma.sync, for sm_80 and newer. A block has kTileM rows of A, of the rows of all batches in a line, and kTileN columns of one
// head's W. Slices of kTileK of the depth pass through a ring of kStages buffers, filled by cp.async; one barrier a slice.
//
// Blocks that share rows of A are neighbours, and all of W stays in L2. A block computes 2 kTileM kTileN depth operations for
// (kTileM + kTileN) depth elements read: 64 operations a byte of L2 with tiles of 128 by 128.
#pragma once

#include "cuda/device.hpp"
#include "cuda/generic/schedule.cuh"
#include "cuda/mla/project_params.hpp"
#include "cuda/mla/weights_product.cuh"

namespace attile::cuda::generic {

// kWarpsM x 2 warps; kM: 16-row fragments of a warp; kColumns: of a warp; kBlocks: on a multiprocessor.
template <class Element_, bool kTransposed_, int kWarpsM_, int kM_, int kColumns_, int kTileK_, int kStages_, int kBlocks_>
struct ProjectTraits {
  using Element = Element_;
  static constexpr bool kTransposed = kTransposed_;
  static constexpr int kThreads = 64 * kWarpsM_, kBlocks = kBlocks_, kM = kM_, kColumns = kColumns_, kStages = kStages_;
  static constexpr int kTileM = 16 * kM * kWarpsM_, kTileN = 2 * kColumns, kTileK = kTileK_;
  static constexpr int kBytes = Element::kBytes, kRowsB = kTransposed ? kTileN : kTileK;
  static constexpr int kRowBytesA = kTileK * kBytes, kRowBytesB = (kTransposed ? kTileK : kTileN) * kBytes;
  static constexpr int kStrideA = kRowBytesA + kRowPadding, kStrideB = kRowBytesB + kRowPadding;
  static constexpr int kABytes = kTileM * kStrideA, kStageBytes = kABytes + kRowsB * kStrideB;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kSharedBytes <= 99 << 10);
};

// Tiles of keys of the attention kernels hold unseen ones too, whose values are multiplied by 0: a NaN there would be seen. No kernel has
// more keys in a tile.
inline constexpr int kMostTileKeys = 256;

// Of batch b; packed: of the one row of all tokens.
__device__ __forceinline__ KeyRange live_rows(const ProjectParams& p, int b) {
  if (p.live == LiveRows::all) return {0, p.rows};
  if (p.q_lengths.packed) return {0, clamp_to(read_index(p.q_lengths.cu, p.sequences), 0, p.rows)};
  int first, seqlen_q, seqlen_k;
  sequence_rows(p.q_lengths, b, first, seqlen_q);
  if (p.live == LiveRows::queries || seqlen_q == 0) return {0, seqlen_q};
  sequence_rows(p.k_lengths, b, first, seqlen_k);
  const int shift = p.bottom_right ? seqlen_k - seqlen_q : 0;
  const Band band{seqlen_k, shift - p.left, shift + p.right};
  return {band.begin(0) - kMostTileKeys, min(seqlen_k, band.end(seqlen_q - 1) + kMostTileKeys)};
}

template <class Traits>
struct ProjectBlock {
  using Element = typename Traits::Element;
  static constexpr int kTileM = Traits::kTileM, kTileN = Traits::kTileN, kTileK = Traits::kTileK, kBytes = Traits::kBytes;

  const ProjectParams& p;
  const Projection& out;
  int head, column0, row0, total;  // total: rows of all batches
  uint32_t base;                   // shared memory
  const char* rows;                // of A, where the tile's rows all exist and are a.row apart, else null
  const char* weight;

  __device__ __forceinline__ ProjectBlock(const ProjectParams& params, const Projection& projection, int head_of, int column, int row,
                                          uint32_t shared)
      : p(params), out(projection), head(head_of), column0(column), row0(row), total(params.batch * params.rows), base(shared) {
    const int b = row0 / p.rows, t = row0 - b * p.rows;
    const bool whole = row0 + kTileM <= total && t + kTileM <= p.rows && p.a.granule == 16;
    rows = whole ? p.a.data + b * p.a.batch + t * p.a.row + head * p.a.head : nullptr;
    weight = out.weight + (p.first_head + head) / p.group * out.weight_head + column0 * (Traits::kTransposed ? out.weight_row : int64_t{kBytes});
  }

  // Row r of a tensor's [batch, rows].
  __device__ __forceinline__ char* row_of(const Tensor& t, int r) const {
    const int b = r / p.rows;
    return t.data + b * t.batch + (r - b * p.rows) * t.row + head * t.head;
  }

  // The slice of the depth from k0 on; beyond the depth are zeros, in both operands.
  __device__ __forceinline__ void load(int stage, int k0) const {
    const uint32_t to = base + stage * Traits::kStageBytes;
    const int offset = k0 * kBytes, valid = (p.depth - k0) * kBytes;
    if (rows) {
      load_whole_rows<kTileM, Traits::kRowBytesA, Traits::kThreads>(to, rows + offset, p.a.row, valid);
    } else {
      load_rows<kTileM, Traits::kRowBytesA, Traits::kThreads>(
          to, p.a.granule, valid, [&](int row) -> const char* { return row0 + row < total ? row_of(p.a, row0 + row) + offset : nullptr; });
    }
    const int exist = Traits::kTransposed ? out.columns - column0 : p.depth - k0;
    const int valid_b = Traits::kTransposed ? valid : (out.columns - column0) * kBytes;
    const char* from = weight + (Traits::kTransposed ? int64_t{offset} : k0 * out.weight_row);
    if (out.weight_granule == 16 && exist >= Traits::kRowsB) {
      load_whole_rows<Traits::kRowsB, Traits::kRowBytesB, Traits::kThreads>(to + Traits::kABytes, from, out.weight_row, valid_b);
    } else {
      load_rows<Traits::kRowsB, Traits::kRowBytesB, Traits::kThreads>(
          to + Traits::kABytes, out.weight_granule, valid_b,
          [&](int row) -> const char* { return row < exist ? from + row * out.weight_row : nullptr; });
    }
  }

  __device__ __forceinline__ void multiply(float (&c)[Traits::kM][Traits::kColumns / 8][4]) const {
    const int slices = (p.depth + kTileK - 1) / kTileK, warp = threadIdx.x / 32;
    const uint32_t a = base + warp / 2 * 16 * Traits::kM * Traits::kStrideA + lane_offset_a(Traits::kStrideA);
    const uint32_t b = base + Traits::kABytes +
                       warp % 2 * Traits::kColumns * (Traits::kTransposed ? Traits::kStrideB : kBytes) +
                       (Traits::kTransposed ? lane_offset_b(Traits::kStrideB) : 0);
#pragma unroll 1
    for (int i = 0; i < Traits::kStages - 1; ++i) {
      if (i < slices) load(i, i * kTileK);
      ptx::cp_async_commit();
    }
    int stage = 0, next = Traits::kStages - 1;
#pragma unroll 1
    for (int i = 0; i < slices; ++i) {
      ptx::cp_async_wait_groups<Traits::kStages - 2>();
      __syncthreads();
      if (i + Traits::kStages - 1 < slices) load(next, (i + Traits::kStages - 1) * kTileK);
      ptx::cp_async_commit();
      const uint32_t at = stage * Traits::kStageBytes;
      if constexpr (Traits::kTransposed) {
        scores_product<Element, Traits::kM, Traits::kColumns, Traits::kRowBytesA / 32, false, Traits::kStrideA>(c, a + at, b + at, 0, true);
      } else {
        weights_product<Element, Traits::kM, Traits::kColumns, kTileK, Traits::kStrideA, Traits::kStrideB>(c, a + at, b + at);
      }
      stage = stage + 1 < Traits::kStages ? stage + 1 : 0;
      next = next + 1 < Traits::kStages ? next + 1 : 0;
    }
  }

  // A warp's sums pass through shared memory, so that rows are written in pieces of 16 bytes.
  __device__ __forceinline__ void store(const float (&c)[Traits::kM][Traits::kColumns / 8][4]) const {
    constexpr int kRowBytes = Traits::kColumns * kBytes, kStride = kRowBytes + kRowPadding, kRows = 16 * Traits::kM, kChunks = kRowBytes / 16;
    static_assert(Traits::kThreads / 32 * kRows * kStride <= Traits::kSharedBytes);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t own = base + warp * kRows * kStride;
    __syncthreads();  // the ring is done with
#pragma unroll
    for (int m = 0; m < Traits::kM; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int n = 0; n < Traits::kColumns / 8; ++n) {
          const uint32_t at = own + (16 * m + 8 * r + lane / 4) * kStride + (8 * n + lane % 4 * 2) * kBytes;
          if constexpr (kBytes == 2) {
            ptx::store_shared(at, Element::pack(c[m][n][2 * r], c[m][n][2 * r + 1]));
          } else {
            ptx::store_shared(at, __float_as_uint(c[m][n][2 * r]));
            ptx::store_shared(at + 4, __float_as_uint(c[m][n][2 * r + 1]));
          }
        }
    __syncwarp();
    const int row1 = row0 + warp / 2 * kRows, column = column0 + warp % 2 * Traits::kColumns + lane % kChunks * (16 / kBytes);
    const int bytes = min(max((out.columns - column) * kBytes, 0), 16);
    const bool wide = bytes == 16 && out.c.granule == 16;
#pragma unroll 1
    for (int r = lane / kChunks; r < kRows; r += 32 / kChunks) {
      if (row1 + r >= total) break;
      const uint32_t from = own + r * kStride + lane % kChunks * 16;
      char* to = row_of(out.c, row1 + r) + column * kBytes;
      if (wide) {
        *reinterpret_cast<uint4*>(to) = ptx::load_shared_16(from);
      } else {
        for (int i = 0; i < bytes; i += kBytes) {
          const uint32_t word = ptx::load_shared((from + i) & ~3u);
          store_unaligned<typename Element::Storage>(to + i, static_cast<typename Element::Storage>(i % 4 ? word >> 16 : word));
        }
      }
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocks) project_kernel(const __grid_constant__ ProjectParams p) {
  extern __shared__ __align__(128) char shared[];
  int block = static_cast<int>(blockIdx.x), tile = block % p.column_tiles;
  block /= p.column_tiles;
  const int head = block % p.heads, row0 = block / p.heads * Traits::kTileM;
  const int first = row0 / p.rows, last = (min(row0 + Traits::kTileM, p.batch * p.rows) - 1) / p.rows;
  if (first == last) {
    const KeyRange live = live_rows(p, first);
    const int t = row0 - first * p.rows;
    if (t >= live.end || t + Traits::kTileM <= live.begin) return;
  }
  const bool second = tile >= p.projections[0].tiles;
  if (second) tile -= p.projections[0].tiles;
  const ProjectBlock<Traits> own(p, p.projections[second], head, tile * Traits::kTileN, row0, ptx::shared_address(shared));
  float c[Traits::kM][Traits::kColumns / 8][4] = {};
  own.multiply(c);
  own.store(c);
}

template <class Traits>
void launch_project(const ProjectParams& p, int64_t blocks, void* stream) {
  check(cudaFuncSetAttribute(project_kernel<Traits>, cudaFuncAttributeMaxDynamicSharedMemorySize, Traits::kSharedBytes), "preparing project");
  project_kernel<Traits><<<static_cast<unsigned>(blocks), Traits::kThreads, Traits::kSharedBytes, static_cast<cudaStream_t>(stream)>>>(p);
  check_launch("launching project");
}

template <template <bool> class Traits>
constexpr ProjectInstance instance_of(bool transposed) {
  static_assert(Traits<false>::kTileM == Traits<true>::kTileM && Traits<false>::kTileN == Traits<true>::kTileN);
  return {Traits<false>::kTileM, Traits<false>::kTileN, transposed ? launch_project<Traits<true>> : launch_project<Traits<false>>};
}

}  // namespace attile::cuda::generic
