#include "cuda/forward/sm90/launch.cuh"

namespace attile::cuda::sm90 {

std::span<const Instance> forward_bf16_96() {
  static constexpr Instance instances[] = {
      instance_of<Bf16, 96, 96, Kind::kFull>(),
      instance_of<Bf16, 96, 96, Kind::kCausal>(),
      instance_of<Bf16, 96, 96, Kind::kCausal, Length::kLong>(),
      instance_of<Bf16, 96, 96, Kind::kBand>(),
      instance_of<Bf16, 96, 96, Kind::kScores>(),
  };
  return instances;
}

}  // namespace attile::cuda::sm90
