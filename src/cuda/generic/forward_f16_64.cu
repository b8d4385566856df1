#include "cuda/generic/forward_launch.cuh"

namespace attile::cuda::generic {

std::span<const ForwardInstance> forward_f16_64() {
  static constexpr ForwardInstance instances[] = {instance_of<Plain64<F16>>(), instance_of<Biased64<F16>>(), instance_of<General64<F16>>()};
  return instances;
}

}  // namespace attile::cuda::generic
