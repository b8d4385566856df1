// The loads of keys row by row, for pages of any size: cp.async by the four warps of an output warpgroup, 16 keys each. A lane knows where
// one key of its warp lies; the rows go round by shuffles. The page number of the next entry's key is asked for an entry ahead.
//
// What cp.async writes is ordinary shared memory to wgmma: who waits for it fences (Pipeline::wait_latent, wait_rope, Gather::fence).
#pragma once

#include "cuda/mla_decode/sm90/loads.cuh"
#include "cuda/mla_decode/sm90/walk.cuh"

namespace attile::cuda::mla_sm90 {

template <class T>
struct Gather {
  static_assert(T::kN == 64 && T::kHalfBoxes == 4 && T::kRopeBoxes == 1 && T::kLatentStages == T::kRopeStages + 1);
  // Where a row begins, in units of 16 bytes: one word to hand round.
  static constexpr int kUnit = 16;
  static constexpr uint32_t kNowhere = ~0u;
  static __device__ __forceinline__ uint32_t row_in_units(int page, int64_t page_stride, int at, int row_stride) {
    return static_cast<uint32_t>(page * (page_stride / 8) + static_cast<int64_t>(at) * (row_stride / 8));
  }
  int page = 0;            // of this lane's key of the entry that comes next
  int rope_page, rope_at;  // where its rope key lies: of the entry whose latents were asked for last; rope_at -1: nowhere

  static __device__ __forceinline__ int own_key() { return (threadIdx.x >> 5 & 3) * 16 + (threadIdx.x & 15); }

  __device__ __forceinline__ void ask_page(const volatile Entry& e, const Segments& seg) {
    if (e.at < 0) return;
    const int r = e.page, key = e.at + own_key();
    if (key < seg.kv_len(r)) page = static_cast<int>(load_word(page_entry(seg.p, r, key / seg.p.page_size)));
  }

  // Half of the latents of entry m, by all threads of the warpgroup; q: the lane that issues the boxes of queries.
  __device__ __forceinline__ void latent(SharedStorage<T>& sm, uint32_t m, int half, const volatile Entry& e, const Maps& maps,
                                         const Segments& seg) {
    const Params& p = seg.p;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
    const uint32_t bar = sm.pipe.latent_barrier(m, half);
    if (e.at < 0) {
      rope_at = -1;
      if (warp == 0 && ptx::elect_one())
        load_latent<T>(sm, m, half, e, maps, seg);  // arrives for itself
      else
        ptx::mbarrier_arrive(bar);
      __syncwarp();
      return;
    }
    const int key = e.at + own_key();
    rope_at = key < seg.kv_len(e.page) ? key % p.page_size : -1;
    rope_page = min(max(page, 0), p.pages - 1);
    const uint32_t mine = rope_at < 0 ? kNowhere : row_in_units(rope_page, p.ckv_page, rope_at, p.ckv_row);
    const int column = half * T::kHalfBoxes * 64 + lane * 8;
    const uint32_t to = ptx::shared_address(sm.latent[sm.pipe.slot(m)][half * T::kHalfBoxes + lane / 8]);
#pragma unroll 4
    for (int i = 0; i < 16; ++i) {
      const uint32_t row = __shfl_sync(~0u, mine, i);
      const bool there = row != kNowhere && column < p.latent;
      const char* from = static_cast<const char*>(p.ckv) + (there ? int64_t{row} * kUnit + column * 2 : 0);
      cp_async_16_once(to + (warp * 16 + i) * 128 + ((lane & 7) ^ (i & 7)) * 16, from, there ? 16 : 0);
    }
    cp_async_arrive(bar);
  }

  // The rope keys of the entry whose latents were asked for last.
  __device__ __forceinline__ void rope(SharedStorage<T>& sm, uint32_t m, const volatile Entry& e, const Maps& maps, const Segments& seg) {
    const Params& p = seg.p;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
    const uint32_t bar = sm.pipe.rope_barrier(m);
    if (e.at < 0) {
      if (warp == 0 && ptx::elect_one())
        load_rope<T>(sm, m, e, maps, seg);
      else
        ptx::mbarrier_arrive(bar);
      __syncwarp();
      return;
    }
    const uint32_t mine = rope_at < 0 ? kNowhere : row_in_units(rope_page, p.kpe_page, rope_at, p.kpe_row);
    const uint32_t to = ptx::shared_address(sm.rope[sm.pipe.rope_slot(m)][0]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = i * 4 + lane / 8, column = (lane & 7) * 8;
      const uint32_t row = __shfl_sync(~0u, mine, key);
      const bool there = row != kNowhere && column < p.rope;
      const char* from = static_cast<const char*>(there ? p.kpe : p.ckv) + (there ? int64_t{row} * kUnit + column * 2 : 0);
      cp_async_16_once(to + (warp * 16 + key) * 128 + ((lane & 7) ^ (key & 7)) * 16, from, there ? 16 : 0);
    }
    cp_async_arrive(bar);
  }
};

}  // namespace attile::cuda::mla_sm90
