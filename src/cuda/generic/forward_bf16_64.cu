#include "cuda/generic/forward_launch.cuh"

namespace attile::cuda::generic {

std::span<const ForwardInstance> forward_bf16_64() {
  static constexpr ForwardInstance instances[] = {instance_of<Plain64<Bf16>>(), instance_of<Biased64<Bf16>>(),
                                                  instance_of<General64<Bf16>>()};
  return instances;
}

}  // namespace attile::cuda::generic
