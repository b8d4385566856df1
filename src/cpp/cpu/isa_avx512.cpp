#include "cpu/simd/avx512.hpp"

#include "cpu/forward/attend.hpp"
