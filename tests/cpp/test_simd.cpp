// The vector type without intrinsics.
// clang-format off
#include "cpu/simd/portable.hpp"
#include "simd_checks.hpp"
// clang-format on

TEST(float_lanes) { simd_checks::all_of<float>(); }
TEST(double_lanes) { simd_checks::all_of<double>(); }

TEST_MAIN()
