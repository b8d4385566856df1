// In place of src/cuda/ptx/math.cuh.
#pragma once

namespace attile::cuda::ptx {

inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.f : y;
}

}  // namespace attile::cuda::ptx
