// AVX2 with FMA and F16C: 32-byte vectors, 16 registers. A product block is 6 x 2 accumulators, 2 vectors of B and a broadcast.
#pragma once

#include <immintrin.h>

#define ATTILE_ISA avx2
#define ATTILE_ISA_BF16_PAIRS false

namespace attile::avx2 {
inline constexpr int kVectorBytes = 32;
inline constexpr int kBlockRows = 6;
inline constexpr int kBlockStep = 2;
inline constexpr bool kBf16Pairs = ATTILE_ISA_BF16_PAIRS;
inline constexpr bool kScalesByPowers = false;
}  // namespace attile::avx2

#include "cpu/simd/vector.hpp"

namespace attile::avx2 {

inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return _mm256_fmadd_pd(a, b, c); }
// The second argument where either is NaN.
inline Vec<float> max(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a, b); }
inline Vec<double> max(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a, b); }

inline Vec<float> join_halves(VecN<float, 4> low, VecN<float, 4> high) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
}
inline Vec<double> join_halves(VecN<double, 2> low, VecN<double, 2> high) {
  return _mm256_insertf128_pd(_mm256_castpd128_pd256(low), high, 1);
}

inline VecN<float, 8> f16_to_f32(VecN<uint16_t, 8> h) { return _mm256_cvtph_ps((__m128i)h); }
inline VecN<float, 4> f16_to_f32(VecN<uint16_t, 4> h) { return _mm_cvtph_ps(_mm_cvtsi64_si128((long long)h)); }
inline VecN<uint16_t, 8> f32_to_f16(VecN<float, 8> x) { return (VecN<uint16_t, 8>)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
inline VecN<uint16_t, 4> f32_to_f16(VecN<float, 4> x) {
  return (VecN<uint16_t, 4>)_mm_cvtsi128_si64(_mm_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

}  // namespace attile::avx2
