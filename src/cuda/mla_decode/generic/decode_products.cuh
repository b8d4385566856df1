// Weights times values: o[kM][group][2][4] += P V of a tile, for the column groups 16 (warp + 8 g) of the latents. P and V lie in shared
// memory; V is the tile of keys itself. Layout of o and the treatment of float32 are those of tile/product.cuh.
#pragma once

#include "cuda/mla_decode/generic/decode_traits.hpp"
#include "cuda/tile/product.cuh"

namespace attile::cuda::latent {

// weights, values: addresses without lane offsets.
template <class Traits>
__device__ __forceinline__ void weigh_values(float (&o)[Traits::kM][Traits::kGroups][2][4], uint32_t weights, uint32_t values,
                                             uint32_t stride, int latent) {
  using Element = typename Traits::Element;
  constexpr int kM = Traits::kM, kStride = Traits::kWeightStride;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if constexpr (Element::kBytes == 2) {
#pragma unroll
    for (int step = 0; step < Traits::kTileN / 16; ++step) {
      uint32_t a[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) ptx::ldmatrix_x4(a[m], weights + 16 * m * kStride + 32 * step + lane_offset_a(kStride));
#pragma unroll
      for (int g = 0; g < Traits::kGroups; ++g) {
        const int column = 16 * (warp + Traits::kWarps * g);
        if (column >= latent) break;
        uint32_t b[4];
        ptx::ldmatrix_x4_trans(b, values + 16 * step * stride + 2 * column + lane_offset_a(stride));
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          Element::mma(o[m][g][0], a[m], b[0], b[1]);
          Element::mma(o[m][g][1], a[m], b[2], b[3]);
        }
      }
    }
  } else {
    constexpr int kSteps = Traits::kTileN / 8;
    uint32_t hi[kSteps][kM][4], lo[kSteps][kM][4];
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // row lane / 4 (+ 8), key 2 (lane % 4) (+ 1)
          const uint32_t at = weights + (16 * m + lane / 4 + i % 2 * 8) * kStride + (8 * step + lane % 4 * 2 + i / 2) * 4;
          const Tf32Pair x = split_tf32(__uint_as_float(ptx::load_shared(at)));
          hi[step][m][i] = x.hi, lo[step][m][i] = x.lo;
        }
#pragma unroll
    for (int g = 0; g < Traits::kGroups; ++g) {
      const int column = 16 * (warp + Traits::kWarps * g);
      if (column >= latent) break;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float sum[kM][4] = {};
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          const uint32_t at = values + (8 * step + lane % 4 * 2) * stride + (column + 8 * n + lane / 4) * 4;
          const Tf32Pair b0 = split_tf32(__uint_as_float(ptx::load_shared(at)));
          const Tf32Pair b1 = split_tf32(__uint_as_float(ptx::load_shared(at + stride)));
#pragma unroll
          for (int m = 0; m < kM; ++m) {
            ptx::mma_tf32(sum[m], lo[step][m], b0.hi, b1.hi);
            ptx::mma_tf32(sum[m], hi[step][m], b0.lo, b1.lo);
            ptx::mma_tf32(sum[m], hi[step][m], b0.hi, b1.hi);
          }
        }
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) o[m][g][n][i] += sum[m][i];
      }
    }
  }
}

}  // namespace attile::cuda::latent
