// AMX: the vectors beside the tiles are those of AVX-512 with conversions to bfloat16. Its dot products of pairs are slow on the
// CPUs that have tiles, so vector products stay in float32 here.
#pragma once

#define ATTILE_ISA amx
#define ATTILE_ISA_BF16_PAIRS false

#include "cpu/simd/avx512bf16.hpp"
