#include "cuda/mla_decode/generic/decode_launch.cuh"

namespace attile::cuda::latent {

std::span<const DecodeInstance> decode_f16() {
  static constexpr DecodeInstance instances[] = {instance_of<DecodeTraits<F16, 1>>(), instance_of<DecodeTraits<F16, 2>>(),
                                                 instance_of<DecodeTraits<F16, 4>>()};
  return instances;
}

}  // namespace attile::cuda::latent
