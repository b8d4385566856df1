// A ring of shared-memory stages between one producer thread (TMA) and the consumer warps. The only file here that counts phases.
#pragma once

#include "cuda/ptx/mbarrier.cuh"

namespace attile::cuda::sm90 {

// In shared memory: full (1 arrival and the bytes of the copy) and empty (one arrival a consumer warp) barriers of each stage.
template <int kStages>
struct RingBarriers {
  uint64_t full[kStages];
  uint64_t empty[kStages];
};

// Each side walks the ring with a cursor of its own.
template <int kStages>
struct RingCursor {
  uint32_t bars;  // address of the RingBarriers
  int stage = 0;
  uint32_t phase = 0;

  __device__ explicit RingCursor(uint32_t address) : bars(address) {}
  __device__ uint32_t full() const { return bars + stage * 8; }
  __device__ uint32_t empty() const { return bars + (kStages + stage) * 8; }

  __device__ void init(int consumers) const {
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(bars + i * 8, 1);
      ptx::mbarrier_init(bars + (kStages + i) * 8, consumers);
    }
  }
  __device__ void advance() {
    if (kStages == 1 || ++stage == kStages) stage = 0, phase ^= 1;
  }
  // Producer: wait for the stage to be free (the first round passes at once).
  __device__ void wait_empty() const { ptx::mbarrier_wait(empty(), phase ^ 1); }
  // Producer: wait_empty, then announce the bytes; returns the barrier that the copy completes on.
  __device__ uint32_t acquire(int bytes) const {
    wait_empty();
    ptx::mbarrier_arrive_expect(full(), bytes);
    return full();
  }
  __device__ void wait_full() const { ptx::mbarrier_wait(full(), phase); }
  __device__ void wait_next_full() const {
    RingCursor next = *this;
    next.advance();
    next.wait_full();
  }
  // Consumer: every warp arrives, for wgmma_wait speaks for the own warp's quarter of the product only.
  __device__ void release(bool yes = true) const { ptx::mbarrier_arrive_if(empty(), yes && threadIdx.x % 32 == 0); }
};

}  // namespace attile::cuda::sm90
