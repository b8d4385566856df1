#include "cuda/forward/sm90/launch.cuh"

namespace attile::cuda::sm90 {

std::span<const Instance> forward_f16_192() {
  static constexpr Instance instances[] = {
      instance_of<F16, 192, 128, Kind::kFull>(),
      instance_of<F16, 192, 128, Kind::kCausal>(),
      instance_of<F16, 192, 128, Kind::kBand>(),
      instance_of<F16, 192, 128, Kind::kScores>(),
  };
  return instances;
}

}  // namespace attile::cuda::sm90
