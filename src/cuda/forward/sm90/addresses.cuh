// The parts of a block's shared memory by address.
#pragma once

#include <cstddef>

#include "cuda/forward/sm90/traits.cuh"

namespace attile::cuda::sm90 {

template <class T>
struct Addresses {
  using S = SharedStorage<T>;
  uint32_t base;
  __device__ uint32_t q() const { return base + offsetof(S, q); }
  __device__ uint32_t k() const { return base + offsetof(S, k); }
  __device__ uint32_t v() const { return base + offsetof(S, v); }
  __device__ uint32_t bias() const { return base + offsetof(S, bias); }
  __device__ auto q_ring() const { return RingCursor<T::kQStages>(base + offsetof(S, q_bars)); }
  __device__ auto k_ring() const { return RingCursor<T::kStages>(base + offsetof(S, k_bars)); }
  __device__ auto v_ring() const { return RingCursor<T::kStages>(base + offsetof(S, v_bars)); }
  __device__ auto bias_ring() const { return RingCursor<T::kBiasStages>(base + offsetof(S, bias_bars)); }
  __device__ auto work_ring() const { return RingCursor<2>(base + offsetof(S, work_bars)); }
};

}  // namespace attile::cuda::sm90
