#include "cuda/mla_decode/generic/decode_launch.cuh"

namespace attile::cuda::latent {

std::span<const DecodeInstance> decode_bf16() {
  static constexpr DecodeInstance instances[] = {instance_of<DecodeTraits<Bf16, 1>>(), instance_of<DecodeTraits<Bf16, 2>>(),
                                                 instance_of<DecodeTraits<Bf16, 4>>()};
  return instances;
}

}  // namespace attile::cuda::latent
