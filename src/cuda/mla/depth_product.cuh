// c[kM][kN / 8] += A B as shared_product of tile/product.cuh, in float32 too, by three TF32 products: B of kDepth rows and kN columns in shared
// memory; A a row each of the 16 kM, or, transposed, each of kDepth. Addresses without lane offsets.
#pragma once

#include "cuda/tile/product.cuh"

namespace attile::cuda {

template <class Element, int kM, int kN, int kDepth, bool kTransposed, uint32_t kStrideA, uint32_t kStrideB>
__device__ __forceinline__ void depth_product(float (&c)[kM][kN / 8][4], uint32_t a, uint32_t b) {
  if constexpr (Element::kBytes == 2) {
    shared_product<Element, kM, kN, kDepth, kTransposed, kStrideA, kStrideB>(c, a, b);
  } else {
    static_assert(kDepth == 32);  // sums of 32 are taken out of the tensor cores
    const uint32_t lane = threadIdx.x % 32;
    a += kTransposed ? lane % 4 * kStrideA + lane / 4 * 4 : lane_offset_a(kStrideA);
    b += lane % 4 * kStrideB + lane / 4 * 4;
    float sum[kM][kN / 8][4] = {}, small[kM][kN / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kDepth / 8; ++step) {
      uint32_t hi[kM][4], lo[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        uint32_t x[4];
        if constexpr (kTransposed) {
#pragma unroll
          for (int i = 0; i < 4; ++i) x[i] = ptx::load_shared(a + (step * 8 + i / 2 * 4) * kStrideA + m * 64 + i % 2 * 32);
        } else {
          ptx::ldmatrix_x4(x, a + m * 16 * kStrideA + step * 32);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Tf32Pair pair = split_tf32(__uint_as_float(x[i]));
          hi[m][i] = pair.hi, lo[m][i] = pair.lo;
        }
      }
#pragma unroll
      for (int n = 0; n < kN / 8; ++n) {
        const uint32_t at = b + step * 8 * kStrideB + n * 32;
        const Tf32Pair b0 = split_tf32(__uint_as_float(ptx::load_shared(at)));
        const Tf32Pair b1 = split_tf32(__uint_as_float(ptx::load_shared(at + 4 * kStrideB)));
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          ptx::mma_tf32(sum[m][n], hi[m], b0.hi, b1.hi);
          ptx::mma_tf32(small[m][n], lo[m], b0.hi, b1.hi);
          ptx::mma_tf32(small[m][n], hi[m], b0.lo, b1.lo);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) c[m][n][i] += sum[m][n][i] + small[m][n][i];
  }
}

}  // namespace attile::cuda
