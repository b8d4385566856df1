#include "cuda/generic/backward_launch.cuh"

namespace attile::cuda::generic {

std::span<const BackwardInstance> backward_f16_512() {
  static const BackwardInstance instances[] = {backward_instance<F16, 192, 32, true>(), backward_instance<F16, 0, 32, true>()};
  return instances;
}

}  // namespace attile::cuda::generic
