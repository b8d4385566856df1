// In place of src/cuda/ptx/mbarrier.cuh.
#pragma once

namespace attile::cuda::ptx {

inline uint32_t opaque_shared_address(const void* p) { return emulation::shared_address(p); }

inline void mbarrier_init(uint32_t bar, int arrivals) { emulation::barrier_init(bar, arrivals); }
inline void fence_barrier_init() {}
inline void mbarrier_arrive(uint32_t bar) { emulation::barrier_arrive(bar, 0); }
inline void mbarrier_arrive_if(uint32_t bar, bool yes) {
  if (yes) emulation::barrier_arrive(bar, 0);
}
inline void mbarrier_arrive_expect(uint32_t bar, int bytes) { emulation::barrier_arrive(bar, bytes); }
inline void mbarrier_wait(uint32_t bar, uint32_t parity) { emulation::barrier_wait(bar, parity); }

inline void named_barrier_sync(int id, int count) { emulation::named_barrier(id, count, true); }
inline void named_barrier_arrive(int id, int count) { emulation::named_barrier(id, count, false); }

inline bool elect_one() { return threadIdx.x % emulation::kWarp == 0; }

}  // namespace attile::cuda::ptx
