#include "cuda/decode/sm90/launch.cuh"

namespace attile::cuda::decode_sm90 {

std::span<const Instance> bf16_instances() { return all_instances<Bf16>(); }

}  // namespace attile::cuda::decode_sm90
