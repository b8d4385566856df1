// c[kM][kN / 8] += A B, as scores_product of tile/product.cuh, but for a B whose rows are the depth: A of 16 kM rows in shared memory, B of
// kDepth rows and kN columns.
#pragma once

#include "cuda/tile/product.cuh"

namespace attile::cuda {

// a: with lane offset; b: without.
template <class Element, int kM, int kN, int kDepth, uint32_t kStrideA, uint32_t kStrideB>
__device__ __forceinline__ void weights_product(float (&c)[kM][kN / 8][4], uint32_t a, uint32_t b) {
  if constexpr (Element::kBytes == 2) {
    constexpr int kParts = kN / 16, kSteps = kDepth / 16;
    b += lane_offset_a(kStrideB);
    uint32_t rows[2][kM][4], columns[2][4];
    const auto load_a = [&](int step) {
#pragma unroll
      for (int m = 0; m < kM; ++m) ptx::ldmatrix_x4(rows[step % 2][m], a + m * 16 * kStrideA + step * 32);
    };
    const auto load_b = [&](int i) { ptx::ldmatrix_x4_trans(columns[i % 2], b + i / kParts * 16 * kStrideB + i % kParts * 32); };
    load_a(0);
    load_b(0);
#pragma unroll
    for (int i = 0; i < kSteps * kParts; ++i) {
      const int step = i / kParts, n = i % kParts;
      if (i + 1 < kSteps * kParts) load_b(i + 1);
      if (n == 0 && step + 1 < kSteps) load_a(step + 1);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        Element::mma(c[m][2 * n], rows[step % 2][m], columns[i % 2][0], columns[i % 2][1]);
        Element::mma(c[m][2 * n + 1], rows[step % 2][m], columns[i % 2][2], columns[i % 2][3]);
      }
    }
  } else {
    static_assert(kDepth == 32);  // sums of 32 are taken out of the tensor cores
    const uint32_t lane = threadIdx.x % 32;
    b += lane % 4 * kStrideB + lane / 4 * 4;
    float sum[kM][kN / 8][4] = {}, small[kM][kN / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kDepth / 8; ++step) {
      uint32_t hi[kM][4], lo[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        uint32_t x[4];
        ptx::ldmatrix_x4(x, a + m * 16 * kStrideA + step * 32);
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
