#include "cuda/generic/forward_launch.cuh"

namespace attile::cuda::generic {

std::span<const ForwardInstance> forward_f32_256() {
  static constexpr ForwardInstance instances[] = {instance_of<Wide256<F32>>(), instance_of<WideGeneral256<F32>>()};
  return instances;
}

}  // namespace attile::cuda::generic
