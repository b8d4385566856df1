// C = A W (project_params.hpp) by the ring of product_ring.cuh. A block has kTileM rows of A, of the rows of all batches in a line, and kTileN
// columns of one head's W. Blocks that share rows of A are neighbours, and all of W stays in L2.
#pragma once

#include "cuda/device.hpp"
#include "cuda/mla/product_ring.cuh"

namespace attile::cuda::generic {

// Tiles of keys of the attention kernels hold unseen ones too, whose values are multiplied by 0: a NaN there would be seen. No kernel has
// more keys in a tile.
inline constexpr int kMostTileKeys = 256;

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
  int k0 = 0;  // of the next slice

  __device__ __forceinline__ ProjectBlock(const ProjectParams& params, const Projection& projection, int head_of, int column, int row,
                                          uint32_t shared)
      : p(params), out(projection), head(head_of), column0(column), row0(row), total(params.batch * params.rows), base(shared) {
    const int b = row0 / p.rows, t = row0 - b * p.rows;
    const bool whole = row0 + kTileM <= total && t + kTileM <= p.rows && p.a.granule == 16;
    rows = whole ? p.a.data + b * p.a.batch + t * p.a.row + head * p.a.head : nullptr;
    weight = out.weight + (p.first_head + head) / p.group * out.weight_head +
             column0 * (Traits::kTransposedB ? out.weight_row : int64_t{kBytes});
  }

  // Row r of a tensor's [batch, rows].
  __device__ __forceinline__ char* row_of(const Tensor& t, int r) const {
    const int b = r / p.rows;
    return t.data + b * t.batch + (r - b * p.rows) * t.row + head * t.head;
  }

  // The slices of multiply_slices.
  __device__ __forceinline__ bool left() const { return k0 < p.depth; }
  __device__ __forceinline__ void advance() { k0 += kTileK; }
  __device__ __forceinline__ void load(uint32_t a, uint32_t b) const {
    const int offset = k0 * kBytes, valid = (p.depth - k0) * kBytes;
    if (rows) {
      load_whole_rows<kTileM, Traits::kRowBytesA, Traits::kThreads>(a, rows + offset, p.a.row, valid);
    } else {
      load_rows<kTileM, Traits::kRowBytesA, Traits::kThreads>(
          a, p.a.granule, valid, [&](int row) -> const char* { return row0 + row < total ? row_of(p.a, row0 + row) + offset : nullptr; });
    }
    load_slice<Traits::kRowsB, Traits::kRowBytesB, Traits::kThreads>(
        b, weight + (Traits::kTransposedB ? int64_t{offset} : k0 * out.weight_row), out.weight_row,
        Traits::kTransposedB ? out.columns - column0 : p.depth - k0, Traits::kTransposedB ? valid : (out.columns - column0) * kBytes,
        out.weight_granule);
  }

  // A warp's sums pass through shared memory, so that rows are written in pieces of 16 bytes.
  __device__ __forceinline__ void store(const typename Traits::Sums& c) const {
    constexpr int kRowBytes = Traits::kColumns * kBytes, kStride = kRowBytes + kRowPadding, kRows = 16 * Traits::kM,
                  kChunks = kRowBytes / 16;
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
    const int row1 = row0 + warp_row<Traits>(), column = column0 + warp_column<Traits>() + lane % kChunks * (16 / kBytes);
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
    const KeyRange live = living_rows(p.living, first, kMostTileKeys);
    const int t = row0 - first * p.rows;
    if (t >= live.end || t + Traits::kTileM <= live.begin) return;
  }
  const bool second = tile >= p.projections[0].tiles;
  if (second) tile -= p.projections[0].tiles;
  ProjectBlock<Traits> own(p, p.projections[second], head, tile * Traits::kTileN, row0, ptx::shared_address(shared));
  typename Traits::Sums c = {};
  multiply_slices<Traits>(c, own.base, own);
  own.store(c);
}

template <class Traits>
void launch_project(const ProjectParams& p, int64_t blocks, void* stream) {
  check(cudaFuncSetAttribute(project_kernel<Traits>, cudaFuncAttributeMaxDynamicSharedMemorySize, Traits::kSharedBytes),
        "preparing project");
  project_kernel<Traits><<<static_cast<unsigned>(blocks), Traits::kThreads, Traits::kSharedBytes, static_cast<cudaStream_t>(stream)>>>(p);
  check_launch("launching project");
}

template <class Plain, class Transposed>
constexpr ProjectInstance instance_of(bool transposed) {
  static_assert(Plain::kTileM == Transposed::kTileM && Plain::kTileN == Transposed::kTileN);
  return {Plain::kTileM, Plain::kTileN, transposed ? launch_project<Transposed> : launch_project<Plain>};
}

}  // namespace attile::cuda::generic
