#include "cuda/generic/backward_launch.cuh"

namespace attile::cuda::generic {

std::span<const BackwardInstance> backward_bf16_128() {
  static const BackwardInstance instances[] = {joint_instance<JointTraits<Bf16, 128, 64, 2, false>, 32>(),
                                               joint_instance<JointTraits<Bf16, 128, 64, 2, true>, 32>()};
  return instances;
}

}  // namespace attile::cuda::generic
