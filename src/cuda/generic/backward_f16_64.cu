#include "cuda/generic/backward_launch.cuh"

namespace attile::cuda::generic {

std::span<const BackwardInstance> backward_f16_64() {
  static const BackwardInstance instances[] = {joint_instance<JointTraits<F16, 64, 64, 3, false>, 64>(),
                                               joint_instance<JointTraits<F16, 64, 64, 2, true>, 32>()};
  return instances;
}

}  // namespace attile::cuda::generic
