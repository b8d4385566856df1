#include "cuda/mla_decode/sm90/launch.cuh"

namespace attile::cuda::mla_sm90 {

std::span<const Instance> bf16_small() {
  static constexpr Instance instances[] = {instance_of<Traits<Bf16, 2, 1, 6>>(), instance_of<Traits<Bf16, 4, 1, 3>>(),
                                           instance_of<Traits<Bf16, 6, 1, 3>>(), instance_of<Traits<Bf16, 8, 8, 2, Rope::heads>>()};
  return instances;
}

}  // namespace attile::cuda::mla_sm90
