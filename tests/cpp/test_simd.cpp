// The vector type without intrinsics.
#include "cpu/simd/portable.hpp"

#include "simd_checks.hpp"

TEST(float_lanes) { simd_checks::all_of<float>(); }
TEST(double_lanes) { simd_checks::all_of<double>(); }

TEST_MAIN()
