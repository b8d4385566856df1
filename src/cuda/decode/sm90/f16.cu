#include "cuda/decode/sm90/launch.cuh"

namespace attile::cuda::decode_sm90 {

std::span<const Instance> f16_instances() { return all_instances<F16>(); }

}  // namespace attile::cuda::decode_sm90
