// The ring of key blocks and what its barriers promise. The only file that counts phases: half h of block n has place (2 n + h) % kHalfPlaces,
// its rope keys slot n % kRopeStages, and every barrier flips once an entry (a block of keys, or queries) that has its place.
//
//   latent_full  a half of a block's latents is in shared memory     (TMA; gathered, widened: the 128 threads who wrote them)
//   rope_full    so are its rope keys                                (TMA; gathered: likewise)
//   s_done       all four score warps have read the block's rope keys: P may overwrite them, or other rope keys (kOwnPlaces)
//   P            named barriers (they wake faster): P, the rescale factors and, with a request's last block, 1 / sum and lse are
//                written; or: Q has been taken. score arrives, left or right waits: one for each and each rope slot
//   latent_free  an output warpgroup has done with its half, and with P; or, where a late load costs time, named barriers: of a half's
//                warps (`half_used`), and of score with both (`p_place`)
//
// kOwnPlaces: all rope keys have the first rope slot, all P the second; the first entry's part of Q has P's, which is free yet.
#pragma once

#include "cuda/mla_decode/sm90/ptx.cuh"

namespace attile::cuda::mla_sm90 {

// kLatentWriters, kRopeWriters: arrivals that make a block; 1: TMA's.
template <int kHalfPlaces, int kRopeStages, int kLatentWriters, int kRopeWriters, bool kOwnPlaces>
struct Pipeline {
  uint64_t latent_full[kHalfPlaces], latent_free[kHalfPlaces], rope_full[kRopeStages], s_done[kRopeStages];

  __device__ __forceinline__ void init() {
    for (int i = 0; i < kHalfPlaces; ++i) ptx::mbarrier_init(at(latent_full[i]), kLatentWriters), ptx::mbarrier_init(at(latent_free[i]), 4);
    for (int i = 0; i < kRopeStages; ++i) ptx::mbarrier_init(at(rope_full[i]), kRopeWriters), ptx::mbarrier_init(at(s_done[i]), 4);
    ptx::fence_barrier_init();
  }
  static constexpr bool kEven = kHalfPlaces % 2 == 0;
  static __device__ __forceinline__ int place(uint32_t n, int half) {
    if constexpr (kEven) {
      const int slot = n % (kHalfPlaces / 2);
      return slot * 2 + half;
    }
    return static_cast<int>((2 * n + half) % kHalfPlaces);
  }
  static __device__ __forceinline__ uint32_t phase(uint32_t n, int half) {
    if constexpr (kEven) return n / (kHalfPlaces / 2) & 1;
    return (2 * n + half) / kHalfPlaces & 1;
  }
  static __device__ __forceinline__ int slot(uint32_t n) { return n % kRopeStages; }  // of statistics
  static __device__ __forceinline__ int rope_place(uint32_t n) { return kOwnPlaces ? n == 0 : slot(n); }
  static __device__ __forceinline__ int p_place(uint32_t n) { return kOwnPlaces ? 1 : slot(n); }

  // ---- producers
  // Who had the place of this half before is through with it.
  __device__ __forceinline__ void wait_place(uint32_t n, int half) {
    const uint32_t user = 2 * n + half;
    if (user >= kHalfPlaces) wait_free((user - kHalfPlaces) / 2, (user - kHalfPlaces) % 2);
  }

  // ---- score
  __device__ __forceinline__ bool latent_ready(uint32_t n) {  // its first half; the same answer in every lane
    return __all_sync(~0u, mbarrier_test(at(latent_full, n, 0), phase(n, 0)));
  }
  __device__ __forceinline__ void wait_latent(uint32_t n, int half) {
    mbarrier_wait(at(latent_full, n, half), phase(n, half));
    if constexpr (kLatentWriters > 1) ptx::fence_async_proxy();
  }
  __device__ __forceinline__ void wait_rope(uint32_t n) {
    mbarrier_wait(at(rope_full[rope_place(n)]), rope_phase(n));
    if constexpr (kRopeWriters > 1) ptx::fence_async_proxy();
  }
  __device__ __forceinline__ void arrive_s(uint32_t n) {
    if (kOwnPlaces && n == 0) return;  // its part of Q has P's place, which no rope keys ever take
    arrive(at(s_done[s_slot(n)]));
  }
  __device__ __forceinline__ void wait_s(uint32_t n) { mbarrier_wait(at(s_done[s_slot(n)]), s_phase(n)); }
  __device__ __forceinline__ bool s_is_done(uint32_t n) { return __all_sync(~0u, mbarrier_test(at(s_done[s_slot(n)]), s_phase(n))); }
  // kOwnPlaces: left and right are through with the P before, or begin. Not waited for before `last` is known: the assembler would place it
  // in front of most of the exponentials.
  __device__ __forceinline__ void wait_p_place(uint32_t last) { ptx::named_barrier_sync(kUsed + 2 + zero_behind(last), 384); }
  // What this thread wrote is for wgmma: the async proxy.
  __device__ __forceinline__ void publish(uint32_t n) {
    ptx::fence_async_proxy();
    __syncwarp();
    ptx::named_barrier_arrive(p_barrier(n, 0), 256), ptx::named_barrier_arrive(p_barrier(n, 1), 256);
  }

  // ---- left, right
  __device__ __forceinline__ void wait_p(uint32_t n, int half) { ptx::named_barrier_sync(p_barrier(n, half), 256); }
  __device__ __forceinline__ void free_p_place() { ptx::named_barrier_arrive(kUsed + 2, 384); }
  __device__ __forceinline__ void release(uint32_t n, int half) { arrive(at(latent_free, n, half)); }
  // By those who refill at once.
  __device__ __forceinline__ void wait_half_used(int half) { ptx::named_barrier_sync(kUsed + half, 128); }
  // By who refills: every warp that used the half of block n is through.
  __device__ __forceinline__ void wait_free(uint32_t n, int half) { mbarrier_wait(at(latent_free, n, half), phase(n, half)); }
  __device__ __forceinline__ uint32_t latent_barrier(uint32_t n, int half) { return at(latent_full, n, half); }
  __device__ __forceinline__ uint32_t rope_barrier(uint32_t n) { return at(rope_full[rope_place(n)]); }

 private:
  static __device__ __forceinline__ int s_slot(uint32_t n) { return kOwnPlaces ? 0 : slot(n); }
  static __device__ __forceinline__ uint32_t s_phase(uint32_t n) { return (kOwnPlaces ? n - 1 : n / kRopeStages) & 1; }
  static __device__ __forceinline__ uint32_t rope_phase(uint32_t n) { return kOwnPlaces ? n > 0 && n % 2 == 0 : n / kRopeStages & 1; }
  // P's. kOwnPlaces: for queries P needs no place, so score may be two entries past one that left or right has yet to wait for.
  static constexpr int kPBarriers = kOwnPlaces ? 4 : kRopeStages, kUsed = 4 + 2 * kPBarriers;
  static_assert(kUsed + 2 + kOwnPlaces <= 16);
  static __device__ __forceinline__ int p_barrier(uint32_t n, int half) { return 4 + half * kPBarriers + n % kPBarriers; }
  static __device__ __forceinline__ uint32_t at(uint64_t& bar) { return ptx::shared_address(&bar); }
  // Of a half of block n. The half's own part first: it stays as it is in a warpgroup's loop.
  static __device__ __forceinline__ uint32_t at(uint64_t (&bars)[kHalfPlaces], uint32_t n, int half) {
    return kEven ? at(bars[half]) + place(n, 0) * 8 : at(bars[place(n, half)]);
  }
  static __device__ __forceinline__ void arrive(uint32_t bar) {  // one arrival a warp
    __syncwarp();
    if ((threadIdx.x & 31) == 0) ptx::mbarrier_arrive(bar);
  }
};

}  // namespace attile::cuda::mla_sm90
