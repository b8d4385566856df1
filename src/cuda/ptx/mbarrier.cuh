// Barriers in shared memory (mbarrier), named barriers, the election of a lane. sm_90. Addresses are those of shared memory, 32 bits.
#pragma once

#include <cstdint>

namespace attile::cuda::ptx {

// Opaque on purpose: else ptxas works the address out again in every turn of a hot loop.
__device__ __forceinline__ uint32_t opaque_shared_address(const void* p) {
  uint32_t a;
  asm volatile("mov.b32 %0, %1;" : "=r"(a) : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(p))));
  return a;
}

__device__ __forceinline__ void mbarrier_init(uint32_t bar, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}
// Makes mbarrier_init visible to TMA.
__device__ __forceinline__ void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void mbarrier_arrive(uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
// Without a branch: ptxas schedules within basic blocks, so a branch in a hot loop costs overlap.
__device__ __forceinline__ void mbarrier_arrive_if(uint32_t bar, bool yes) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %1, 0;\n@p mbarrier.arrive.shared::cta.b64 _, [%0];\n}" ::"r"(bar), "r"(int(yes)) : "memory");
}
// One arrival, and the barrier's phase then also waits for `bytes` of TMA writes.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

// Until the phase of this parity is over.
__device__ __forceinline__ void mbarrier_wait(uint32_t bar, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "retry:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra.uni retry;\n}"
      ::"r"(bar), "r"(parity) : "memory");
}

__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// One lane of the warp; unlike `lane == 0` the compiler then knows that a single thread runs the branch.
__device__ __forceinline__ bool elect_one() {
  uint32_t yes;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(yes));
  return yes;
}

}  // namespace attile::cuda::ptx
