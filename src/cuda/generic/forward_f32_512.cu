#include "cuda/generic/forward_launch.cuh"

namespace attile::cuda::generic {

std::span<const ForwardInstance> forward_f32_512() {
  static constexpr ForwardInstance instances[] = {instance_of<WideStreamed<F32>>()};
  return instances;
}

}  // namespace attile::cuda::generic
