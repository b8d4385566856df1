#include "cuda/mla_decode/sm90/launch.cuh"

namespace attile::cuda::mla_sm90 {

std::span<const Instance> bf16_narrow() {
  static constexpr Instance instances[] = {instance_of<Traits<Bf16, 8, 1, 2, Rope::shared, Keys::narrow>>()};
  return instances;
}

}  // namespace attile::cuda::mla_sm90
