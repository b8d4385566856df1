// See few_rows.cuh. The launch is that of kernel.cuh: every block plans for itself, and parts of a request wait for each other.
#pragma once

#include "cuda/mla_decode/sm90/few_rows_output.cuh"
#include "cuda/mla_decode/sm90/few_rows_score.cuh"

namespace attile::cuda::mla_sm90 {

__global__ void __launch_bounds__(few_rows::Shape::kThreads, 1) mla_decode_few_rows(const __grid_constant__ Params p,
                                                                                   const __grid_constant__ Maps maps) {
  using T = few_rows::Shape;
  extern __shared__ __align__(1024) uint8_t shared[];
  few_rows::Storage& sm = *reinterpret_cast<few_rows::Storage*>(shared);
  // Asked for first: all else waits for them.
  const int own = threadIdx.x, own_len = own < p.batch ? kv_len_of(p, own) : 0, first_len = kv_len_of(p, 0);
  if (threadIdx.x == 384)
    ptx::tma_prefetch_descriptor(&maps.ckv), ptx::tma_prefetch_descriptor(&maps.kpe), ptx::tma_prefetch_descriptor(&maps.q_nope),
        ptx::tma_prefetch_descriptor(&maps.q_pe);
  if (threadIdx.x == 0) sm.init();
  static_assert(sizeof(PlanStorage) <= sizeof(sm.keys));  // the ring is free yet
  prefetch_table<T::kThreads>(p);
  make_plan<T::kThreads>(p, *reinterpret_cast<PlanStorage*>(sm.keys), sm.part, own_len, first_len);
  write_shared_records<T::kThreads>(p);
  ptx::fence_async_proxy();  // TMA writes next where the plan was made
  Others others;             // all threads meet
  const Segments seg{p, sm.part, T::kN, 0};
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);  // so the compiler knows that a warp has one role
  if (role == 0) {
    ptx::registers_raise<T::kScoreRegisters>();
    others.wait();
    few_rows::score(sm, seg);
  } else if (role == 3) {
    ptx::registers_lower<T::kProducerRegisters>();
    if (threadIdx.x < 384 + 32)
      few_rows::Loads{sm, seg, maps, others}.run();
    else
      others.wait();
  } else {
    ptx::registers_lower<T::kOutRegisters>();
    others.wait();
    few_rows::output(sm, seg, role - 1);
    join<T>(reinterpret_cast<float*>(sm.q[(role - 1) * 4]), seg, role - 1);  // Q has been taken
    if (p.packed) clear_rows_behind(p, threadIdx.x - 128);
  }
}

}  // namespace attile::cuda::mla_sm90
