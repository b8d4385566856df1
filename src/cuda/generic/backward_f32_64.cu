#include "cuda/generic/backward_launch.cuh"

namespace attile::cuda::generic {

std::span<const BackwardInstance> backward_f32_64() {
  static const BackwardInstance instances[] = {backward_instance<F32, 64, 32, true>()};
  return instances;
}

}  // namespace attile::cuda::generic
