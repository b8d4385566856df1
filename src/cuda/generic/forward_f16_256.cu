#include "cuda/generic/forward_launch.cuh"

namespace attile::cuda::generic {

std::span<const ForwardInstance> forward_f16_256() {
  static constexpr ForwardInstance instances[] = {instance_of<Plain192<F16>>(), instance_of<Plain256<F16>>(),
                                                  instance_of<General256<F16>>()};
  return instances;
}

}  // namespace attile::cuda::generic
