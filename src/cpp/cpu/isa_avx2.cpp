#include "cpu/simd/avx2.hpp"

#include "cpu/forward/attend.hpp"
