#include "cuda/generic/backward_launch.cuh"

namespace attile::cuda::generic {

std::span<const BackwardInstance> backward_bf16_128() {
  static const BackwardInstance instances[] = {backward_instance<Bf16, 128, 32, false>(), backward_instance<Bf16, 128, 32, true>()};
  return instances;
}

}  // namespace attile::cuda::generic
