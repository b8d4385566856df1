// In place of src/cuda/ptx/reduce.cuh.
#pragma once

namespace attile::cuda::ptx {

inline void add_to_global(float* to, const float (&x)[4]) {
  if (reinterpret_cast<uintptr_t>(to) % 16) emulation::fail("an addition of four numbers that is not aligned");
  for (int i = 0; i < 4; ++i) to[i] += x[i];
}

}  // namespace attile::cuda::ptx
