#include "cuda/generic/forward_launch.cuh"

namespace attile::cuda::generic {

std::span<const ForwardInstance> forward_f16_128() {
  static constexpr ForwardInstance instances[] = {instance_of<Plain96<F16>>(), instance_of<Plain128<F16>>(), instance_of<Biased128<F16>>(),
                                                  instance_of<General128<F16>>()};
  return instances;
}

}  // namespace attile::cuda::generic
