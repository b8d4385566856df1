#include "cuda/generic/forward_launch.cuh"

namespace attile::cuda::generic {

std::span<const ForwardInstance> forward_f32_64() {
  static constexpr ForwardInstance instances[] = {instance_of<Wide64<F32>>(), instance_of<WideGeneral64<F32>>()};
  return instances;
}

}  // namespace attile::cuda::generic
