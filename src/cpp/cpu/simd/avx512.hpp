// AVX-512 (F, BW, CD, DQ, VL): 64-byte vectors, 32 registers. A product block is 12 x 2 accumulators, 2 vectors of B and the
// broadcasts: 28 registers.
#pragma once

// gcc 12 takes the deliberately undefined operand of its own intrinsics for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop

#ifndef ATTILE_ISA
#define ATTILE_ISA avx512
#define ATTILE_ISA_BF16_PAIRS false
#endif

namespace attile::ATTILE_ISA {
inline constexpr int kVectorBytes = 64;
inline constexpr int kBlockRows = 12;
inline constexpr int kBlockStep = 4;
inline constexpr bool kBf16Pairs = ATTILE_ISA_BF16_PAIRS;
inline constexpr bool kScalesByPowers = true;
}  // namespace attile::ATTILE_ISA

#include "cpu/simd/vector.hpp"

namespace attile::ATTILE_ISA {

inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return _mm512_fmadd_pd(a, b, c); }
// The second argument where either is NaN.
inline Vec<float> max(Vec<float> a, Vec<float> b) { return _mm512_max_ps(a, b); }
inline Vec<double> max(Vec<double> a, Vec<double> b) { return _mm512_max_pd(a, b); }

// x - round(x), and x 2^floor(exponent)
inline Vec<float> nearest_fraction_of(Vec<float> x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec<float> scale_by_power(Vec<float> x, Vec<float> exponent) { return _mm512_scalef_ps(x, exponent); }

inline Vec<float> join_halves(VecN<float, 8> low, VecN<float, 8> high) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
inline Vec<double> join_halves(VecN<double, 4> low, VecN<double, 4> high) {
  return _mm512_insertf64x4(_mm512_castpd256_pd512(low), high, 1);
}

inline VecN<float, 16> f16_to_f32(VecN<uint16_t, 16> h) { return _mm512_cvtph_ps((__m256i)h); }
inline VecN<float, 8> f16_to_f32(VecN<uint16_t, 8> h) { return _mm256_cvtph_ps((__m128i)h); }
inline VecN<uint16_t, 16> f32_to_f16(VecN<float, 16> x) { return (VecN<uint16_t, 16>)_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
inline VecN<uint16_t, 8> f32_to_f16(VecN<float, 8> x) { return (VecN<uint16_t, 8>)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }

}  // namespace attile::ATTILE_ISA
