// Split-KV MLA decode, absorbed form, Hopper.
//
//   s[r, t] = softmax_scale * (q_nope[r] . ckv[t] + q_pe[r] . kpe[t]),   o[r] = softmax(s[r]) . ckv,   r = (query token, head)
//
// A block takes 64 rows of one part (plan.cuh): a run of key blocks over one or more requests. Three warpgroups, or four:
//   score        S = Q K^T, softmax, P to shared memory; most of Q in registers, which leaves shared memory for keys
//   left, right  half of O's columns each; they issue the loads
//   producers    do, and nothing else, where keys come row by row
//
// Cost a block of 64 keys, L = 512, R = 64: 64 x 576 x 2 bytes; 2 * 64 * 64 * (576 + 512) operations, 2176 tensor-core cycles.
// Limits: launch.cpp says them to who asks. Float8 latents for few rows have a kernel of their own: few_rows.cuh.
#pragma once

#include "cuda/mla_decode/sm90/gather.cuh"
#include "cuda/mla_decode/sm90/join.cuh"
#include "cuda/mla_decode/sm90/output.cuh"
#include "cuda/mla_decode/sm90/plan.cuh"
#include "cuda/mla_decode/sm90/score.cuh"

namespace attile::cuda::mla_sm90 {

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1) mla_decode_kernel(const __grid_constant__ Params p, const __grid_constant__ Maps maps) {
  extern __shared__ __align__(1024) uint8_t shared[];
  SharedStorage<T>& sm = *reinterpret_cast<SharedStorage<T>*>(shared);
  // Asked for first: all else waits for them.
  const int own = threadIdx.x, own_len = own < p.batch ? kv_len_of(p, own) : 0, first_len = kv_len_of(p, 0);
  if (threadIdx.x == 128)
    ptx::tma_prefetch_descriptor(&maps.ckv), ptx::tma_prefetch_descriptor(&maps.kpe), ptx::tma_prefetch_descriptor(&maps.q_nope),
        ptx::tma_prefetch_descriptor(&maps.q_pe);
  if (threadIdx.x == 0) sm.raw.init(), sm.landing.init(), sm.pipe.init();
  static_assert(sizeof(PlanStorage) <= sizeof(sm.latent) + sizeof(sm.rope));  // the ring is free yet
  prefetch_table<T::kThreads>(p);
  make_plan<T::kThreads, T::kPairs>(p, *reinterpret_cast<PlanStorage*>(shared), sm.part, own_len, first_len);
  write_shared_records<T::kThreads>(p);
  ptx::fence_async_proxy();  // TMA writes next where the plan was made
  Others others;             // all threads meet
  const Segments seg{p, sm.part, T::kN, static_cast<int>(blockIdx.x)};
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);  // so the compiler knows that a warp has one role
  const auto scores = [&] {
    ptx::registers_raise<T::kScoreRegisters>();
    others.wait();
    score<T>(sm, seg);
  };
  const auto outputs = [&] {
    if constexpr (T::kProducers)
      ptx::registers_raise<T::kOutRegisters>();
    else
      ptx::registers_lower<T::kOutRegisters>();
    output<T>(sm, seg, role - 1, maps, others);
    if (!(T::kPairs && sm.part.pair)) join<T>(reinterpret_cast<float*>(sm.latent[role - 1]), seg, role - 1);  // the ring is free now
    if (p.packed) clear_rows_behind(p, threadIdx.x - 128);
  };
  if constexpr (T::kBytesLimit) {
    // So ptxas puts score's instructions behind the plan's: score takes the queries when the first keys have just been asked for, and an
    // instruction that is fetched from then on waits behind them for 3 us.
    if (role > 0)
      outputs();
    else
      scores();
  } else if (role == 0) {
    scores();
  } else if (T::kProducers && role == 3) {
    ptx::registers_lower<T::kProducerRegisters>();
    if constexpr (T::kProducers) gather_keys<T>(sm, seg, maps, others);
  } else {
    outputs();
  }
}

}  // namespace attile::cuda::mla_sm90
