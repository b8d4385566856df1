// In place of src/cuda/ptx/math.cuh.
#pragma once

namespace attile::cuda::ptx {

inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.f : y;
}

inline float max_nan(float x, float y) { return x != x ? x : y != y ? y : fmaxf(x, y); }

inline float log2_approx(float x) { return log2f(x); }
inline float reciprocal_approx(float x) { return 1 / x; }

inline uint32_t pack_e4m3(float a, float b, float c, float d) {
  const auto code = [](float x) { return static_cast<uint32_t>(emulation::to_e4m3(x)); };
  return code(a) | code(b) << 8 | code(c) << 16 | code(d) << 24;
}

}  // namespace attile::cuda::ptx
