// Included by the files that compile kernels, one for each element type and head dim.
#pragma once

#include "cuda/device.hpp"
#include "cuda/generic/forward_instances.hpp"
#include "cuda/generic/forward_kernel.cuh"

namespace attile::cuda::generic {

template <class Traits>
void launch_forward(const ForwardParams& p, int64_t blocks, void* stream) {
  static_assert(sizeof(ForwardParams) <= 4096);
  if (Traits::kSharedBytes > 48 << 10)
    check(cudaFuncSetAttribute(forward_kernel<Traits>, cudaFuncAttributeMaxDynamicSharedMemorySize, Traits::kSharedBytes),
          "preparing forward_generic");
  forward_kernel<Traits><<<static_cast<unsigned>(blocks), Traits::kThreads, Traits::kSharedBytes, static_cast<cudaStream_t>(stream)>>>(p);
  check_launch("launching forward_generic");
}

template <class Traits>
constexpr ForwardInstance instance_of() {
  return {Traits::kTileM,       Traits::kTileN,        Traits::kStreamed ? 0 : Traits::kDim, Traits::kDimV, Traits::kVariant,
          Traits::kSharedBytes, launch_forward<Traits>};
}

}  // namespace attile::cuda::generic
