#include "cuda/generic/forward_launch.cuh"

namespace attile::cuda::generic {

std::span<const ForwardInstance> forward_bf16_256() {
  using Latent = ForwardTraits<Bf16, Variant::plain, 4, 2, 48, 192, 128, 2>;  // keys of 128 + 64, as latents make them
  static constexpr ForwardInstance instances[] = {instance_of<Latent>(), instance_of<Plain192<Bf16>>(), instance_of<Plain256<Bf16>>(),
                                                  instance_of<General256<Bf16>>()};
  return instances;
}

}  // namespace attile::cuda::generic
