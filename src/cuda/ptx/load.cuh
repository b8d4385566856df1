// Global memory that no kernel writes while this one runs.
#pragma once

#include <cstdint>

namespace attile::cuda::ptx {

// Stays where it is asked for: the compiler would move it to its use, and its latency with it.
__device__ __forceinline__ uint32_t load_word(const void* p) {
  uint32_t x;
  asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(x) : "l"(p));
  return x;
}

}  // namespace attile::cuda::ptx
