#include "cuda/forward/sm90/launch.cuh"

namespace attile::cuda::sm90 {

std::span<const Instance> forward_bf16_256() {
  static constexpr Instance instances[] = {
      instance_of<Bf16, 256, 256, Kind::kFull>(),
      instance_of<Bf16, 256, 256, Kind::kFull, Length::kLong>(),
      instance_of<Bf16, 256, 256, Kind::kCausal>(),
      instance_of<Bf16, 256, 256, Kind::kBand>(),
      instance_of<Bf16, 256, 256, Kind::kScores>(),
  };
  return instances;
}

}  // namespace attile::cuda::sm90
