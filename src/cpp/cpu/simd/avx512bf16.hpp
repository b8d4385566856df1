// AVX-512 with bfloat16 dot products (vdpbf16ps): c += a0 b0 + a1 b1 for the pairs of every lane, in float32. Twice the operations of
// a multiply-add on AMD, half of them on Intel.
#pragma once

#ifndef ATTILE_ISA
#define ATTILE_ISA avx512bf16
#define ATTILE_ISA_BF16_PAIRS true
#endif

#include "cpu/simd/avx512.hpp"

namespace attile::ATTILE_ISA {

inline Vec<float> dot_pairs(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }

// (low, high) of every lane rounded to bfloat16, to nearest even, NaN kept.
inline Vec<float> make_pairs(Vec<float> low, Vec<float> high) {
  const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(high, low);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
                                         18, 2, 17, 1, 16, 0);
  return (Vec<float>)_mm512_permutexvar_epi16(order, rounded);
}

}  // namespace attile::ATTILE_ISA
