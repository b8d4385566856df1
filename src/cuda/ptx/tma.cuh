// Bulk copies of boxes of a tensor between global and shared memory (TMA). sm_90.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace attile::cuda::ptx {

enum : uint64_t { kEvictFirst = 0x12F0000000000000ull, kEvictLast = 0x14F0000000000000ull };

__device__ __forceinline__ void tma_prefetch_descriptor(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// The barrier counts the box's bytes.
__device__ __forceinline__ void tma_load_4d(uint32_t to, const CUtensorMap* map, uint32_t bar, uint64_t hint, int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], %7;"
      ::"r"(to), "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(hint)
      : "memory");
}
__device__ __forceinline__ void tma_load_5d(uint32_t to, const CUtensorMap* map, uint32_t bar, uint64_t hint, int c0, int c1, int c2, int c3, int c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;"
      ::"r"(to), "l"(map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "l"(hint)
      : "memory");
}

// By the threads that say yes; without a branch, which would cost the code around it its uniform registers.
__device__ __forceinline__ void tma_store_5d_if(bool yes, uint32_t from, const CUtensorMap* map, int c0, int c1, int c2, int c3, int c4) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %7, 0;\n"
      "@p cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];\n}"
      ::"l"(map), "r"(from), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "r"(int(yes))
      : "memory");
}
__device__ __forceinline__ void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until this thread's stores have read their shared memory.
__device__ __forceinline__ void tma_store_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// Shared memory written by ordinary stores becomes visible to TMA; each writing thread, before a barrier.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace attile::cuda::ptx
