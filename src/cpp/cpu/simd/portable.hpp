// Any CPU: 16-byte vectors, which are SSE2 on x86-64, NEON on aarch64 and plain code elsewhere. No intrinsics.
#pragma once

#define ATTILE_ISA portable
#define ATTILE_ISA_BF16_PAIRS false

namespace attile::portable {
inline constexpr int kVectorBytes = 16;
inline constexpr int kBlockRows = 4;
inline constexpr int kBlockStep = 4;
inline constexpr bool kBf16Pairs = ATTILE_ISA_BF16_PAIRS;
inline constexpr bool kScalesByPowers = false;
}  // namespace attile::portable

#include "cpu/simd/vector.hpp"

namespace attile::portable {

// Contracted to one instruction where the CPU has it.
template <class V>
inline V fma(V a, V b, V c) {
  return a * b + c;
}
// The second argument where either is NaN.
template <class V>
inline V max(V a, V b) {
  return a > b ? a : b;
}

inline Vec<float> join_halves(VecN<float, 2> low, VecN<float, 2> high) { return __builtin_shufflevector(low, high, 0, 1, 2, 3); }
inline Vec<double> join_halves(VecN<double, 1> low, VecN<double, 1> high) { return Vec<double>{low[0], high[0]}; }

// float16 by integers. A subnormal is its mantissa times 2^-24: made by a conversion, because the worker flushes subnormal
// float32 to zero and a shift of exponents would pass through them.
template <class H>
inline auto f16_to_f32(H h) {
  constexpr int W = sizeof(H) / 2;
  using F = VecN<float, W>;
  using U = VecN<uint32_t, W>;
  using I = VecN<int32_t, W>;
  const U u = __builtin_convertvector(h, U);
  const U sign = (u & 0x8000u) << 16, rest = u & 0x7FFFu;
  const U normal = (rest << 13) + (rest >= 0x7C00u ? U{} + (224u << 23) : U{} + (112u << 23));
  const U subnormal = (U)(__builtin_convertvector((I)rest, F) * 0x1p-24f);
  return (F)((rest < 0x400u ? subnormal : normal) | sign);
}

// Round to nearest even; NaN stays NaN. Below 2^-14 adding 1/2 lets float32's own rounding find the multiple of 2^-24.
template <class F>
inline auto f32_to_f16(F x) {
  constexpr int W = sizeof(F) / 4;
  using U = VecN<uint32_t, W>;
  const U u = (U)x;
  const U sign = (u >> 16) & 0x8000u, rest = u & 0x7FFFFFFFu;
  const U normal = (rest + 0xFFFu + ((rest >> 13) & 1u) - (112u << 23)) >> 13;
  const U subnormal = (U)((F)rest + 0.5f) - 0x3F000000u;
  U half = rest < (113u << 23) ? subnormal : normal;
  half = rest >= 0x477FF000u ? U{} + 0x7C00u : half;
  half = rest > 0x7F800000u ? U{} + 0x7E00u : half;
  return __builtin_convertvector(half | sign, VecN<uint16_t, W>);
}

}  // namespace attile::portable
