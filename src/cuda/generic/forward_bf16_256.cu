#include "cuda/generic/forward_launch.cuh"

namespace attile::cuda::generic {

std::span<const ForwardInstance> forward_bf16_256() {
  static constexpr ForwardInstance instances[] = {instance_of<Plain192<Bf16>>(), instance_of<Plain256<Bf16>>(),
                                                  instance_of<General256<Bf16>>()};
  return instances;
}

}  // namespace attile::cuda::generic
