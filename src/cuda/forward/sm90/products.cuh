// The two products of attention on a warpgroup's 64 rows.
#pragma once

#include "cuda/ptx/wgmma.cuh"

namespace attile::cuda::sm90 {

// s(64 x N) = Q(64 x D) K(N x D)^T; q, k: low words of the tiles' descriptors.
template <class Element, int D, int kRowsQ, int N, int kRegs>
__device__ __forceinline__ void matmul_qk(float (&s)[kRegs], uint32_t q, uint32_t k) {
  static_assert(kRegs == N / 2);
#pragma unroll
  for (int i = 0; i < D * Element::kBytes / 32; ++i)  // 32 bytes of a row a step
    ptx::wgmma_ss<Element, 0>(s, ptx::descriptor(q + (i / 4 * kRowsQ * 128 + i % 4 * 32) / 16),
                              ptx::descriptor(k + (i / 4 * N * 128 + i % 4 * 32) / 16), i > 0);
}

// o(64 x Dv) += P(64 x N) V(N x Dv); P in registers, v: low word of the tile's descriptor; E4m3: of V's transpose, [N/128][Dv][128].
template <class Element, int kRegs, int kSteps>
__device__ __forceinline__ void matmul_pv(float (&o)[kRegs], const uint32_t (&p)[kSteps][4], uint32_t v) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    if constexpr (Element::kBytes == 1)
      ptx::wgmma_rs<Element, 0>(o, p[i], ptx::descriptor(v + (i / 4 * kRegs * 2 * 128 + i % 4 * 32) / 16), 1);
    else
      ptx::wgmma_rs<Element, 1>(o, p[i], ptx::descriptor(v + i * 2048 / 16), 1);
  }
}

}  // namespace attile::cuda::sm90
