// In place of src/cuda/ptx/global.cuh.
#pragma once

namespace attile::cuda::ptx {

inline uint4 load_global_16(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16) emulation::fail("16 bytes are read at an address that is no multiple of 16");
  return *static_cast<const uint4*>(from);
}

inline const char* address_of(const char* base, int a, int b) { return base + static_cast<int64_t>(a) * b; }

}  // namespace attile::cuda::ptx
