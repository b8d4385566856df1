#include "cuda/generic/forward_launch.cuh"

namespace attile::cuda::generic {

std::span<const ForwardInstance> forward_f16_256() {
  using Latent = ForwardTraits<F16, Variant::plain, 4, 2, 48, 192, 128, 2>;  // keys of 128 + 64, as latents make them
  static constexpr ForwardInstance instances[] = {instance_of<Latent>(), instance_of<Plain192<F16>>(), instance_of<Plain256<F16>>(),
                                                  instance_of<General256<F16>>()};
  return instances;
}

}  // namespace attile::cuda::generic
