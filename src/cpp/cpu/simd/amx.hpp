// AMX: the vectors beside the tiles are those of AVX-512 with conversions to bfloat16. Its dot products of pairs are slow on the
// CPUs that have tiles, so vector products stay in float32 here.
#pragma once

#define ATTILE_ISA amx
#define ATTILE_ISA_BF16_PAIRS false

#include "cpu/simd/avx512bf16.hpp"

namespace attile::ATTILE_ISA {

inline Vec<float> ceil(Vec<float> x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }

// One bit a lane of a comparison's result.
inline uint32_t lanes_of(Vec<int32_t> comparison) { return static_cast<uint32_t>(_mm512_movepi32_mask((__m512i)comparison)); }

// 32 bfloat16 in order: those of low, then those of high, rounded to nearest even, NaN kept.
using Halves = VecN<uint16_t, 32>;
inline Halves make_halves(Vec<float> low, Vec<float> high) { return (Halves)_mm512_cvtne2ps_pbh(high, low); }

}  // namespace attile::ATTILE_ISA
