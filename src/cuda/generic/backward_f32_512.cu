#include "cuda/generic/backward_launch.cuh"

namespace attile::cuda::generic {

std::span<const BackwardInstance> backward_f32_512() {
  static const BackwardInstance instances[] = {backward_instance<F32, 0, 16, true>()};
  return instances;
}

}  // namespace attile::cuda::generic
