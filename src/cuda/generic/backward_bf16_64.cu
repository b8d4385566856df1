#include "cuda/generic/backward_launch.cuh"

namespace attile::cuda::generic {

std::span<const BackwardInstance> backward_bf16_64() {
  static const BackwardInstance instances[] = {joint_instance<JointTraits<Bf16, 64, 64, 3, false>, 64>(),
                                               joint_instance<JointTraits<Bf16, 64, 64, 2, true>, 32>()};
  return instances;
}

}  // namespace attile::cuda::generic
