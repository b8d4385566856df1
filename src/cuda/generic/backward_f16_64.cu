#include "cuda/generic/backward_launch.cuh"

namespace attile::cuda::generic {

std::span<const BackwardInstance> backward_f16_64() {
  static const BackwardInstance instances[] = {backward_instance<F16, 64, 64, false>(), backward_instance<F16, 64, 32, true>()};
  return instances;
}

}  // namespace attile::cuda::generic
