// The ring of tiles and its barriers. Entry 2 n are the keys of the n-th tile, 2 n + 1 its values; slot: entry % kSlots.
//
//   full   the tile is in shared memory   (TMA, or the lanes whose copies it is made of)
//   free   all warps have read it         (a lane of each says so; where lanes write next, each lane for itself, for racecheck does not
//                                          follow an order that a warp's barrier hands to another lane)
#pragma once

#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mbarrier.cuh"

namespace attile::cuda::decode_sm90 {

template <int kSlots, int kReaders>
struct Ring {
  uint64_t full[kSlots], free[kSlots];

  __device__ __forceinline__ void init(bool by_lanes) {
    const int lanes = by_lanes ? 32 : 1;  // of a warp that arrive
    for (int i = 0; i < kSlots; ++i) ptx::mbarrier_init(at(full[i]), lanes), ptx::mbarrier_init(at(free[i]), kReaders * lanes);
    ptx::fence_barrier_init();
  }
  static __device__ __forceinline__ uint32_t at(const uint64_t& bar) { return ptx::shared_address(&bar); }
};

// Where a warp is in it.
template <int kSlots, int kReaders>
struct Cursor {
  const Ring<kSlots, kReaders>& ring;
  int slot = 0;
  uint32_t turn = 0;

  __device__ __forceinline__ explicit Cursor(const Ring<kSlots, kReaders>& r) : ring(r) {}
  __device__ __forceinline__ uint32_t full() const { return ring.at(ring.full[slot]); }
  __device__ __forceinline__ void wait_full() const { ptx::mbarrier_wait(full(), turn & 1); }
  __device__ __forceinline__ void wait_free() const { ptx::mbarrier_wait(ring.at(ring.free[slot]), (turn & 1) ^ 1); }  // a new one is
  __device__ __forceinline__ void release(bool by_lanes) const {
    __syncwarp();
    if (by_lanes || threadIdx.x % 32 == 0) ptx::mbarrier_arrive(ring.at(ring.free[slot]));
  }
  __device__ __forceinline__ void next() {
    if (++slot == kSlots) slot = 0, ++turn;
  }
};

}  // namespace attile::cuda::decode_sm90
