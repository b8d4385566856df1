// In place of src/cuda/ptx/tma.cuh. A load arrives when somebody waits for its barrier, a store when its thread waits for its stores.
#pragma once

#include "cuda.h"

namespace attile::cuda::ptx {

enum : uint64_t { kEvictFirst, kEvictLast };

inline void tma_prefetch_descriptor(const CUtensorMap*) {}
inline void tma_load_4d(uint32_t to, const CUtensorMap* map, uint32_t bar, uint64_t, int c0, int c1, int c2, int c3) {
  emulation::tensor_load(to, *map, bar, {c0, c1, c2, c3});
}
inline void tma_load_5d(uint32_t to, const CUtensorMap* map, uint32_t bar, uint64_t, int c0, int c1, int c2, int c3, int c4) {
  emulation::tensor_load(to, *map, bar, {c0, c1, c2, c3, c4});
}
inline void tma_store_5d_if(bool yes, uint32_t from, const CUtensorMap* map, int c0, int c1, int c2, int c3, int c4) {
  if (yes) emulation::tensor_store(from, *map, {c0, c1, c2, c3, c4});
}
inline void tma_store_commit() {}
inline void tma_store_wait_read() { emulation::wait_for_stores(); }
inline void fence_async_proxy() {}

}  // namespace attile::cuda::ptx
