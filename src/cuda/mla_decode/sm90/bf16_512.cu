#include "cuda/mla_decode/sm90/launch.cuh"

namespace attile::cuda::mla_sm90 {

std::span<const Instance> bf16_512() {
  static constexpr Instance instances[] = {instance_of<Traits<Bf16, 8, 1, 2>>(64), instance_of<Traits<Bf16, 8, 1, 3>>(),
                                           instance_of<Traits<Bf16, 8, 2, 2>>(),
                                           instance_of<Traits<Bf16, 8, 1, 2, Rope::shared, Keys::gathered>>()};
  return instances;
}

}  // namespace attile::cuda::mla_sm90
