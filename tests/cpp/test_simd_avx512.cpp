// The vector type of AVX-512, on CPUs that have it.
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "check.hpp"
#include "cpu/denormals.hpp"
#include "cpu/features.hpp"
#include "cpu/scalars.hpp"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")
#endif

// clang-format off
#include "cpu/simd/avx512.hpp"
#include "simd_checks.hpp"
// clang-format on

static void float_checks() { simd_checks::all_of<float>(); }
static void double_checks() { simd_checks::all_of<double>(); }

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
static void float_checks() {}
static void double_checks() {}
#endif

TEST(float_lanes) {
  if (attile::has_avx512()) float_checks();
}
TEST(double_lanes) {
  if (attile::has_avx512()) double_checks();
}

TEST_MAIN()
