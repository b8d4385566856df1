// Latents of float8_e4m3: TMA brings them as they are into a ring of their own, a half of a block each box, and the output warpgroup whose
// half it is widens them where S and O read them: to float16, which holds them exactly and costs one instruction for two (to bfloat16 it is
// two and a half more). So the latent part of Q and P are float16 too: a row of Q times a power of two (query_scale.cuh). They are numbers
// without their scale: score multiplies S by it before the rope part comes, and 1 / sum.
//
// Cost a block of 64 keys: 16 bytes a thread eight times, about 18 instructions each, 290 issue slots a scheduler; 96 KB through shared memory.
// Raw block n is at n % kRawStages; its barrier flips once an entry as all others do.
#pragma once

#include "cuda/mla_decode/sm90/loads.cuh"

namespace attile::cuda::mla_sm90 {

// Asks for a half of entry m as it is; by one warp.
template <class T>
__device__ __forceinline__ void load_raw(SharedStorage<T>& sm, uint32_t m, int half, const volatile Entry& e, const Maps& maps) {
  if (e.at == kEnd || !ptx::elect_one()) return;
  const uint32_t bar = sm.raw.barrier(m, half);
  if (e.at <= kQ) {
    ptx::mbarrier_arrive(bar);
    return;
  }
  ptx::mbarrier_arrive_expect(bar, sizeof(sm.raw.keys[0][0]));
  tma_load_3d(ptx::shared_address(sm.raw.keys[m % T::kRawStages][half]), &maps.ckv, bar, policy_evict_first(), half * T::kOutN, e.at,
              e.page);
}

// A half of entry m to where S and O read it, by the warpgroup; then asks for the half that has its raw room next.
template <class T>
__device__ __forceinline__ void widen(SharedStorage<T>& sm, uint32_t m, int half, const Maps& maps, const Segments& seg) {
  const volatile Entry& e = sm.entry(half, m);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
  const uint32_t bar = sm.pipe.latent_barrier(m, half);
  sm.raw.wait(m, half);
  if (e.at <= kQ) {
    if (warp == 0 && ptx::elect_one())
      load_latent<T>(sm, m, half, e, maps, seg);  // arrives for itself
    else
      ptx::mbarrier_arrive(bar);
    __syncwarp();
  } else {
    // Eight lanes: 64 bytes of an even row, the 64 beside them of the next one. So neither reads nor writes meet in a bank.
    const int odd = lane >> 2 & 1, row = warp * 16 + lane / 8 * 2 + odd;
    const uint8_t* from = sm.raw.keys[m % T::kRawStages][half] + row * T::kOutN + (lane & 3) * 16;
    uint8_t* to = sm.half_of(m, half)[0] + row * 128 + (((lane & 3) * 2 ^ (row & 7)) << 4);
    const int second = ((lane & 3) * 2 ^ (row & 7)) & 1 ? -16 : 16;  // from the first eight numbers to the others
    const auto two = [](uint32_t x) { return e4m3_to_f16(static_cast<uint16_t>(x)); };
#pragma unroll
    for (int i = 0; i < T::kHalfBoxes; ++i) {  // rows 8 * (i / 2).. of these, boxes 2 * (i % 2)..
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const uint8_t* piece = s ? from + (1 - odd) * 64 : from + odd * 64;
        uint8_t* at = (s ? to + (1 - odd) * T::kBoxBytes : to + odd * T::kBoxBytes) + i / 2 * 8 * 128 + i % 2 * 2 * T::kBoxBytes;
        const uint4 x = *reinterpret_cast<const uint4*>(piece + i / 2 * 8 * T::kOutN + i % 2 * 2 * 64);
        *reinterpret_cast<uint4*>(at) = uint4{two(x.x), two(x.x >> 16), two(x.y), two(x.y >> 16)};
        *reinterpret_cast<uint4*>(at + second) = uint4{two(x.z), two(x.z >> 16), two(x.w), two(x.w >> 16)};
      }
    }
    ptx::fence_async_proxy();
    ptx::mbarrier_arrive(bar);
  }
  ptx::named_barrier_sync(2 + half, 128);  // all have read
  if (warp == 0) load_raw<T>(sm, m + T::kRawStages, half, sm.entry(half, m + T::kRawStages), maps);
  __syncwarp();
}

}  // namespace attile::cuda::mla_sm90
