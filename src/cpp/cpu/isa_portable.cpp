#include "cpu/simd/portable.hpp"

#include "cpu/forward/attend.hpp"
