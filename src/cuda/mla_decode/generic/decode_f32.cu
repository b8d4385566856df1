#include "cuda/mla_decode/generic/decode_launch.cuh"

namespace attile::cuda::latent {

std::span<const DecodeInstance> decode_f32() {
  static constexpr DecodeInstance instances[] = {instance_of<DecodeTraits<F32, 1>>(), instance_of<DecodeTraits<F32, 2>>()};
  return instances;
}

}  // namespace attile::cuda::latent
