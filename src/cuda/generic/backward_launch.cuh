// Included by the files that compile backward kernels.
#pragma once

#include "cuda/device.hpp"
#include "cuda/generic/backward_instances.hpp"
#include "cuda/generic/backward_joint.cuh"
#include "cuda/generic/backward_kernel.cuh"

namespace attile::cuda::generic {

template <class Kernel, class... Arguments>
void launch_backward(Kernel kernel, int threads, int shared_bytes, int64_t blocks, void* stream, const Arguments&... arguments) {
  if (blocks == 0) return;
  if (shared_bytes > 48 << 10)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "preparing backward_generic");
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check_launch("launching backward_generic");
}

template <class Traits>
constexpr BackwardInstance queries_instance() {
  BackwardInstance i{};
  i.dim = Traits::kStreamed ? 0 : Traits::kDim;
  i.general = Traits::kGeneral;
  i.columns = Traits::kColumns;
  i.other = Traits::kOther;
  i.shared_bytes = Traits::kSharedBytes;
  i.queries = [](const BackwardParams& p, int64_t blocks, void* stream) {
    launch_backward(backward_queries<Traits>, kBackwardThreads, Traits::kSharedBytes, blocks, stream, p);
  };
  if constexpr (Traits::kGeneral)
    i.bias = [](const BackwardParams& p, int key_tiles, int64_t blocks, void* stream) {
      launch_backward(backward_bias<Traits>, kBackwardThreads, Traits::kSharedBytes, blocks, stream, p, key_tiles);
    };
  return i;
}

// Gradients of keys and of queries by kernels of their own.
template <class Element, int kDim, int kOther, bool kGeneral>
constexpr BackwardInstance backward_instance() {
  using Traits = BackwardTraits<Element, kDim, kOther, kGeneral>;
  BackwardInstance i = queries_instance<Traits>();
  i.key_rows = kBackwardRows;
  i.keys = [](const BackwardParams& p, int64_t blocks, void* stream) {
    launch_backward(backward_keys<Traits>, kBackwardThreads, Traits::kSharedBytes, blocks, stream, p);
  };
  return i;
}

// All by one kernel, unless bits must repeat.
template <class Joint, int kOther>
constexpr BackwardInstance joint_instance() {
  using Traits = BackwardTraits<typename Joint::Element, Joint::kDim, kOther, Joint::kGeneral>;
  BackwardInstance i = queries_instance<Traits>();
  i.shared_bytes = Joint::kSharedBytes > Traits::kSharedBytes ? Joint::kSharedBytes : Traits::kSharedBytes;
  i.key_rows = Joint::kKeys;
  i.keys = [](const BackwardParams& p, int64_t blocks, void* stream) {
    launch_backward(backward_joint<Joint>, Joint::kThreads, Joint::kSharedBytes, blocks, stream, p);
  };
  i.finish = [](const BackwardParams& p, int64_t blocks, void* stream) {
    launch_backward(backward_finish<Joint>, Joint::kThreads, 0, blocks, stream, p);
  };
  return i;
}

}  // namespace attile::cuda::generic
