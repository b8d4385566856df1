// Included by the files that compile backward kernels.
#pragma once

#include "cuda/device.hpp"
#include "cuda/generic/backward_instances.hpp"
#include "cuda/generic/backward_kernel.cuh"

namespace attile::cuda::generic {

template <class Kernel, class... Arguments>
void launch_backward(Kernel kernel, int shared_bytes, int64_t blocks, void* stream, const Arguments&... arguments) {
  if (blocks == 0) return;
  if (shared_bytes > 48 << 10)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "preparing backward_generic");
  kernel<<<static_cast<unsigned>(blocks), kBackwardThreads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check_launch("launching backward_generic");
}

template <class Element, int kDim, int kOther, bool kGeneral>
constexpr BackwardInstance backward_instance() {
  using Traits = BackwardTraits<Element, kDim, kOther, kGeneral>;
  BackwardInstance i{kDim,
                     kGeneral,
                     Traits::kColumns,
                     kOther,
                     Traits::kSharedBytes,
                     [](const BackwardParams& p, int64_t blocks, void* stream) {
                       launch_backward(backward_keys<Traits>, Traits::kSharedBytes, blocks, stream, p);
                     },
                     [](const BackwardParams& p, int64_t blocks, void* stream) {
                       launch_backward(backward_queries<Traits>, Traits::kSharedBytes, blocks, stream, p);
                     },
                     nullptr};
  if constexpr (kGeneral)
    i.bias = [](const BackwardParams& p, int key_tiles, int64_t blocks, void* stream) {
      launch_backward(backward_bias<Traits>, Traits::kSharedBytes, blocks, stream, p, key_tiles);
    };
  return i;
}

}  // namespace attile::cuda::generic
