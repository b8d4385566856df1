#include "cuda/generic/forward_launch.cuh"

namespace attile::cuda::generic {

std::span<const ForwardInstance> forward_f16_512() {
  static constexpr ForwardInstance instances[] = {instance_of<Streamed<F16>>()};
  return instances;
}

}  // namespace attile::cuda::generic
