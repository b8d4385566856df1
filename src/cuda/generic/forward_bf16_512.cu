#include "cuda/generic/forward_launch.cuh"

namespace attile::cuda::generic {

std::span<const ForwardInstance> forward_bf16_512() {
  static constexpr ForwardInstance instances[] = {instance_of<Streamed<Bf16>>()};
  return instances;
}

}  // namespace attile::cuda::generic
