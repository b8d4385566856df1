// Global memory to registers where they stand: the compiler moves no volatile load to its use.
#pragma once

#include <cuda_runtime.h>

namespace attile::cuda::ptx {

// What nobody writes while the kernel runs, 16 bytes at a multiple of 16, of which L1 keeps nothing and L2 fetches the 256 around.
__device__ __forceinline__ uint4 load_global_16(const void* from) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from));
  return x;
}

// base + a b, one instruction where the compiler would shift and add in halves of 32 bits.
__device__ __forceinline__ const char* address_of(const char* base, int a, int b) {
  const char* r;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(r) : "r"(a), "r"(b), "l"(base));
  return r;
}

}  // namespace attile::cuda::ptx
