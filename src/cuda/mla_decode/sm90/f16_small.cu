#include "cuda/mla_decode/sm90/launch.cuh"

namespace attile::cuda::mla_sm90 {

std::span<const Instance> f16_small() {
  static constexpr Instance instances[] = {instance_of<Traits<F16, 2, 1, 6>>(), instance_of<Traits<F16, 4, 1, 3>>(),
                                           instance_of<Traits<F16, 6, 1, 3>>(), instance_of<Traits<F16, 8, 8, 2, Rope::heads>>()};
  return instances;
}

}  // namespace attile::cuda::mla_sm90
