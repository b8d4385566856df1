#include "cuda/forward/sm90/launch.cuh"

namespace attile::cuda::sm90 {

std::span<const Instance> forward_e4m3() {
  static constexpr Instance instances[] = {
      instance_of<E4m3, 64, 64, Kind::kFull, Length::kShort>(),
      instance_of<E4m3, 64, 64, Kind::kFull>(),
      instance_of<E4m3, 64, 64, Kind::kCausal, Length::kShort>(),
      instance_of<E4m3, 64, 64, Kind::kCausal>(),
      instance_of<E4m3, 64, 64, Kind::kBand>(),
      instance_of<E4m3, 64, 64, Kind::kScores>(),
      instance_of<E4m3, 128, 128, Kind::kFull>(),
      instance_of<E4m3, 128, 128, Kind::kCausal>(),
      instance_of<E4m3, 128, 128, Kind::kBand>(),
      instance_of<E4m3, 128, 128, Kind::kScores>(),
      instance_of<E4m3, 256, 256, Kind::kFull>(),
      instance_of<E4m3, 256, 256, Kind::kCausal>(),
      instance_of<E4m3, 256, 256, Kind::kBand>(),
  };
  return instances;
}

}  // namespace attile::cuda::sm90
