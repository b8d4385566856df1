// In place of src/cuda/ptx/load.cuh.
#pragma once

namespace attile::cuda::ptx {

inline uint32_t load_word(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 4) emulation::fail("a load of a word that is not aligned");
  uint32_t x;
  memcpy(&x, p, 4);
  return x;
}

}  // namespace attile::cuda::ptx
