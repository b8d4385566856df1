// Split-KV decode of grouped heads, Hopper: few query rows (tokens x heads of a group) meet a long cache, dense or in pages.
//
//   out[r] = softmax(softmax_scale q[r] . k[j]) v[j],  j over the keys that row r sees
//
// A block has a run of tiles (plan.cuh) over one or more units, a unit being a key head of a sequence. One warp loads (producer.cuh), the
// others compute (consumer.cuh); parts of a unit are joined when all blocks have theirs (output.cuh), which is why the launch is a
// cooperative one.
//
// Cost a key: 4 D bytes from device memory, which is the bound; 4 D operations a row, of 16 rows at least, on mma.sync: with 8 rows and D 128
// a ninth of what the tensor cores could do meanwhile. Limits: launch.cpp says them to who asks.
#pragma once

#include <cooperative_groups.h>

#include <utility>

#include "cuda/decode/sm90/consumer.cuh"
#include "cuda/decode/sm90/producer.cuh"

namespace attile::cuda::decode_sm90 {

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks) decode_kernel(const __grid_constant__ Params p, const __grid_constant__ Maps maps) {
  extern __shared__ __align__(1024) uint8_t shared[];
  SharedStorage<T>& sm = *reinterpret_cast<SharedStorage<T>*>(shared);
  if (threadIdx.x == T::kConsumers) ptx::tma_prefetch_descriptor(&maps.k), ptx::tma_prefetch_descriptor(&maps.v);
  if (threadIdx.x == 0) sm.barriers.init(p.by_lanes());
  sum_tiles<T>(p.f, sm.plan);
  const Axis axis(sm.plan, p.f, gridDim.x);
  if (threadIdx.x == T::kConsumers) find_part(axis, sm.part);
  __syncthreads();
  if (threadIdx.x >= T::kConsumers) {
    produce<T>(p, maps, sm);
  } else {
    if (threadIdx.x % 32 == 0 && threadIdx.x < 64 && sm.part.tiles > 0) find_shared_units(axis, sm.part, threadIdx.x / 32);
    sync_consumers<T>();  // of the plan nothing is needed any more
    consume<T>(p, sm);
  }
  const cooperative_groups::grid_group grid = cooperative_groups::this_grid();
  auto arrived = grid.barrier_arrive();
  if (sm.part.tiles == 0 || (sm.part.first.count < 2 && sm.part.last.count < 2)) return;
  grid.barrier_wait(std::move(arrived));
  if (threadIdx.x >= T::kConsumers) return;
  join(p, sm, sm.part.first);
  join(p, sm, sm.part.last);
}

}  // namespace attile::cuda::decode_sm90
