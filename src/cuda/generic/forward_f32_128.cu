#include "cuda/generic/forward_launch.cuh"

namespace attile::cuda::generic {

std::span<const ForwardInstance> forward_f32_128() {
  static constexpr ForwardInstance instances[] = {instance_of<Wide128<F32>>(), instance_of<WideGeneral128<F32>>()};
  return instances;
}

}  // namespace attile::cuda::generic
