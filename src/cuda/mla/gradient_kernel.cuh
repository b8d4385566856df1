// The products of gradient_params.hpp by the ring of product_ring.cuh, each sum by one block, so that bits repeat:
//
//   latents   a block has kTileM tokens and kTileN elements of the latents; its depth is the dims of all heads, of keys and then of values
//   weights   a block has kTileM elements of the latents and kTileN columns of a head's weights; its depth is the tokens of all sequences
//
// With 16 heads of 128 + 128 dims and 8192 tokens both are 34 GFLOP, 4096 and 8192 deep, of 256 and 128 blocks.
#pragma once

#include "cuda/device.hpp"
#include "cuda/mla/gradient_params.hpp"
#include "cuda/mla/product_ring.cuh"

namespace attile::cuda::generic {

// Adds a block's sums to rows from `row0` on, `rows` of which exist.
template <class Traits>
__device__ __forceinline__ void add_sums(const typename Traits::Sums& c, const Tensor& sums, int head, int row0, int rows, int column0,
                                         int columns) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < Traits::kM; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = row0 + warp_row<Traits>() + 16 * m + 8 * r + lane / 4;
      if (row >= rows) continue;
      float* to = reinterpret_cast<float*>(sums.data + row * sums.row + head * sums.head);
#pragma unroll
      for (int n = 0; n < Traits::kColumns / 8; ++n) {
        const int column = column0 + warp_column<Traits>() + 8 * n + lane % 4 * 2;
        if (column + 1 < columns) {  // rows begin at multiples of 16 bytes
          float2& at = *reinterpret_cast<float2*>(to + column);
          at = {at.x + c[m][n][2 * r], at.y + c[m][n][2 * r + 1]};
        } else if (column < columns) {
          to[column] += c[m][n][2 * r];
        }
      }
    }
}

template <class Traits>
struct LatentSlices {
  const GradientParams& p;
  int row0, column0, total;
  int which = 0, head = 0, k0 = 0;

  __device__ __forceinline__ LatentSlices(const GradientParams& params, int row, int column)
      : p(params), row0(row), column0(column), total(params.batch * params.rows) {}

  __device__ __forceinline__ bool left() const { return which < 2; }
  __device__ __forceinline__ void advance() {
    k0 += Traits::kTileK;
    if (k0 < p.of[which].dim) return;
    k0 = 0;
    if (++head < p.heads) return;
    head = 0;
    ++which;
  }
  __device__ __forceinline__ void load(uint32_t a, uint32_t b) const {
    constexpr int kBytes = Traits::kBytes;
    const MadeGradient& g = p.of[which];
    const int valid = (g.dim - k0) * kBytes;
    load_slice<Traits::kRowsA, Traits::kRowBytesA, Traits::kThreads>(a, g.rows.data + head * g.rows.head + row0 * g.rows.row + k0 * kBytes,
                                                                     g.rows.row, total - row0, valid, g.rows.granule);
    load_slice<Traits::kRowsB, Traits::kRowBytesB, Traits::kThreads>(
        b, g.weight.data + (p.first_head + head) / p.group * g.weight.head + column0 * g.weight.row + k0 * kBytes, g.weight.row,
        p.rank - column0, valid, g.weight.granule);
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocks) latent_gradient_kernel(const __grid_constant__ GradientParams p) {
  extern __shared__ __align__(128) char shared[];
  const int tiles = (p.rank + Traits::kTileN - 1) / Traits::kTileN, block = static_cast<int>(blockIdx.x);
  const int row0 = block / tiles * Traits::kTileM, column0 = block % tiles * Traits::kTileN;
  LatentSlices<Traits> slices(p, row0, column0);
  typename Traits::Sums c = {};
  multiply_slices<Traits>(c, ptx::shared_address(shared), slices);
  add_sums<Traits>(c, p.latent_sums, 0, row0, slices.total, column0, p.rank);
}

// Of head `own` of the weights. What no query sees takes no part, for a latent there may be anything.
template <class Traits>
struct WeightSlices {
  const GradientParams& p;
  const MadeGradient& g;
  int row0, column0, head, end_head;
  int b = 0, token = 0, end = 0;  // of the next slice, and behind the last token of its sequence

  __device__ __forceinline__ WeightSlices(const GradientParams& params, int which, int own, int row, int column)
      : p(params), g(params.of[which]), row0(row), column0(column) {
    head = max(p.first_head, own * p.group) - p.first_head;
    end_head = min(p.first_head + p.heads, (own + 1) * p.group) - p.first_head;
    find_tokens();
    skip_empty();
  }

  __device__ __forceinline__ bool left() const { return head < end_head; }
  __device__ __forceinline__ void advance() {
    token += Traits::kTileK;
    skip_empty();
  }
  __device__ __forceinline__ void load(uint32_t a, uint32_t b_to) const {
    constexpr int kBytes = Traits::kBytes;
    load_slice<Traits::kRowsA, Traits::kRowBytesA, Traits::kThreads>(
        a, p.latent.data + b * p.latent.batch + token * p.latent.row + row0 * kBytes, p.latent.row, end - token, (p.rank - row0) * kBytes,
        p.latent.granule);
    load_slice<Traits::kRowsB, Traits::kRowBytesB, Traits::kThreads>(
        b_to, g.rows.data + b * g.rows.batch + token * g.rows.row + head * g.rows.head + column0 * kBytes, g.rows.row, end - token,
        (g.dim - column0) * kBytes, g.rows.granule);
  }

 private:
  __device__ __forceinline__ void find_tokens() {
    const KeyRange live = living_rows(p.living, b, 0);
    token = live.begin, end = live.end;
  }
  __device__ __forceinline__ void skip_empty() {
    while (token >= end && head < end_head) {
      if (++b == p.batch) b = 0, ++head;
      find_tokens();
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocks) weight_gradient_kernel(const __grid_constant__ GradientParams p) {
  extern __shared__ __align__(128) char shared[];
  int block = static_cast<int>(blockIdx.x);
  const int row_tiles = (p.rank + Traits::kTileM - 1) / Traits::kTileM, row0 = block % row_tiles * Traits::kTileM;
  block /= row_tiles;
  const int tile = block % p.column_tiles, own = p.first_head / p.group + block / p.column_tiles;
  const int which = tile < p.first_tiles ? 0 : 1, column0 = (tile - which * p.first_tiles) * Traits::kTileN;
  WeightSlices<Traits> slices(p, which, own, row0, column0);
  typename Traits::Sums c = {};
  multiply_slices<Traits>(c, ptx::shared_address(shared), slices);
  add_sums<Traits>(c, p.of[which].weight_sums, own, row0, p.rank, column0, p.of[which].dim);
}

template <class Traits, class Kernel>
void launch_gradient(Kernel kernel, const GradientParams& p, int64_t blocks, void* stream) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Traits::kSharedBytes), "preparing gradients of latents");
  kernel<<<static_cast<unsigned>(blocks), Traits::kThreads, Traits::kSharedBytes, static_cast<cudaStream_t>(stream)>>>(p);
  check_launch("launching gradients of latents");
}

template <class Latents, class Weights>
constexpr GradientInstance gradient_instance() {
  static_assert(Latents::kTileM == Weights::kTileM && Latents::kTileN == Weights::kTileN);
  return {Latents::kTileM, Latents::kTileN,
          [](const GradientParams& p, int64_t blocks, void* stream) {
            launch_gradient<Latents>(latent_gradient_kernel<Latents>, p, blocks, stream);
          },
          [](const GradientParams& p, int64_t blocks, void* stream) {
            launch_gradient<Weights>(weight_gradient_kernel<Weights>, p, blocks, stream);
          }};
}

}  // namespace attile::cuda::generic
