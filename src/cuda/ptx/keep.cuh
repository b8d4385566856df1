// A value that stays in its register: what comes of threadIdx the compiler would rather work out again at each use.
#pragma once

#include <cstdint>

namespace attile::cuda::ptx {

template <class T>
__device__ __forceinline__ void keep(T& x) {
  static_assert(sizeof(T) == 4);
  asm volatile("" : "+r"(x));
}

}  // namespace attile::cuda::ptx
