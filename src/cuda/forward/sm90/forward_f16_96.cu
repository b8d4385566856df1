#include "cuda/forward/sm90/launch.cuh"

namespace attile::cuda::sm90 {

std::span<const Instance> forward_f16_96() {
  static constexpr Instance instances[] = {
      instance_of<F16, 96, 96, Kind::kFull>(),
      instance_of<F16, 96, 96, Kind::kCausal>(),
      instance_of<F16, 96, 96, Kind::kCausal, Length::kLong>(),
      instance_of<F16, 96, 96, Kind::kBand>(),
      instance_of<F16, 96, 96, Kind::kScores>(),
  };
  return instances;
}

}  // namespace attile::cuda::sm90
