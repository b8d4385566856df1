// What this CPU and this operating system offer: cpuid says what the CPU decodes, xgetbv which registers the system saves, and
// for AMX arch_prctl whether the system gives this process the tiles. Asked once.
#pragma once

#include <string>

namespace attile {

bool has_avx2();    // AVX2 with FMA, F16C, BMI1/2, LZCNT, MOVBE, POPCNT
bool has_avx512();  // the above and AVX-512 F, BW, CD, DQ, VL
bool has_avx512_bf16();
bool fast_bf16_dots();  // and a bfloat16 dot product takes no longer than a float32 multiply-add: so on AMD, not on Intel
bool has_amx_bf16();    // the above and AMX-TILE, AMX-BF16, and the tiles are ours
bool has_large_l2();    // of 2 MB or more a core

// {"avx2": true, ...}
std::string cpu_features_json();

}  // namespace attile
