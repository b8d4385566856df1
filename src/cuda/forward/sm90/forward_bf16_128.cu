#include "cuda/forward/sm90/launch.cuh"

namespace attile::cuda::sm90 {

std::span<const Instance> forward_bf16_128() {
  static constexpr Instance instances[] = {
      instance_of<Bf16, 128, 128, Kind::kFull, Length::kShort>(),
      instance_of<Bf16, 128, 128, Kind::kFull>(),
      instance_of<Bf16, 128, 128, Kind::kCausal>(),
      instance_of<Bf16, 128, 128, Kind::kCausal, Length::kLong>(),
      instance_of<Bf16, 128, 128, Kind::kBand>(),
      instance_of<Bf16, 128, 128, Kind::kSegments>(),
      instance_of<Bf16, 128, 128, Kind::kMask>(),
      instance_of<Bf16, 128, 128, Kind::kCap>(),
      instance_of<Bf16, 128, 128, Kind::kBias>(),
      instance_of<Bf16, 128, 128, Kind::kScores>(),
  };
  return instances;
}

}  // namespace attile::cuda::sm90
