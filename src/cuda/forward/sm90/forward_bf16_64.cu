#include "cuda/forward/sm90/launch.cuh"

namespace attile::cuda::sm90 {

std::span<const Instance> forward_bf16_64() {
  static constexpr Instance instances[] = {
      instance_of<Bf16, 64, 64, Kind::kFull>(),
      instance_of<Bf16, 64, 64, Kind::kCausal, Length::kShort>(),
      instance_of<Bf16, 64, 64, Kind::kCausal>(),
      instance_of<Bf16, 64, 64, Kind::kBand>(),
      instance_of<Bf16, 64, 64, Kind::kSegments>(),
      instance_of<Bf16, 64, 64, Kind::kMask>(),
      instance_of<Bf16, 64, 64, Kind::kCap>(),
      instance_of<Bf16, 64, 64, Kind::kBias>(),
      instance_of<Bf16, 64, 64, Kind::kScores>(),
  };
  return instances;
}

}  // namespace attile::cuda::sm90
