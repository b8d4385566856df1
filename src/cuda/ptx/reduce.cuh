// Additions to global memory by many blocks at once, in no order.
#pragma once

namespace attile::cuda::ptx {

// to: at a multiple of 16 bytes.
__device__ __forceinline__ void add_to_global(float* to, const float (&x)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]) : "memory");
#else
#pragma unroll
  for (int i = 0; i < 4; ++i) asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to + i), "f"(x[i]) : "memory");
#endif
}

}  // namespace attile::cuda::ptx
