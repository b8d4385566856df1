#include "cuda/generic/forward_launch.cuh"

namespace attile::cuda::generic {

std::span<const ForwardInstance> forward_bf16_128() {
  static constexpr ForwardInstance instances[] = {instance_of<Plain96<Bf16>>(), instance_of<Plain128<Bf16>>(),
                                                  instance_of<Biased128<Bf16>>(), instance_of<General128<Bf16>>()};
  return instances;
}

}  // namespace attile::cuda::generic
