// bfloat16 pairs of AVX-512, on CPUs that have them.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.hpp"
#include "cpu/denormals.hpp"
#include "cpu/features.hpp"
#include "cpu/scalars.hpp"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16")
#endif

#include "cpu/simd/avx512bf16.hpp"

using namespace attile::avx512bf16;

static uint32_t pair_of(float low, float high) {
  return static_cast<uint32_t>(attile::float_to_bfloat16(high)) << 16 | attile::float_to_bfloat16(low);
}

// Rounding as a scalar does it, every value in every lane of both halves.
static void rounding() {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const std::vector<float> values = {0.f,        1.f,      -1.f,     0.1f, 1.00390625f, 1.01171875f, 1.003906369f, 3.3e38f,
                                     -2.999999f, 1.2e-38f, 65280.5f, inf,  -inf,        0.9999f,     -0.f,         0.33333f};
  for (size_t shift = 0; shift < values.size(); ++shift) {
    float low[16], high[16];
    uint32_t got[16];
    for (size_t l = 0; l < 16; ++l) {
      low[l] = values[(l + shift) % 16];
      high[l] = values[(l + 5 * shift + 3) % 16];
    }
    store(got, make_pairs(load<Vec<float>>(low), load<Vec<float>>(high)));
    for (size_t l = 0; l < 16; ++l) CHECK_EQ(got[l], pair_of(low[l], high[l]));
  }
  uint32_t got[16];
  store(got, make_pairs(broadcast<float>(nan), broadcast<float>(1.f)));
  CHECK(std::isnan(attile::bfloat16_to_float(static_cast<uint16_t>(got[7]))));
  CHECK_EQ(got[7] >> 16, uint32_t{0x3F80});
}

// c + a0 b0 + a1 b1 in every lane, exact for small integers.
static void dots() {
  float low[16], high[16];
  for (int l = 0; l < 16; ++l) {
    low[l] = static_cast<float>(l - 5);
    high[l] = static_cast<float>(2 * l + 1);
  }
  const Vec<float> a = make_pairs(load<Vec<float>>(low), load<Vec<float>>(high));
  const Vec<float> b = make_pairs(broadcast<float>(3), broadcast<float>(-0.5f));
  const Vec<float> sum = dot_pairs(a, b, broadcast<float>(100));
  for (int l = 0; l < 16; ++l) CHECK_EQ(sum[l], 100 + 3 * low[l] - 0.5f * high[l]);
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
static void rounding() {}
static void dots() {}
#endif

TEST(pairs_round_like_scalars) {
  if (attile::has_avx512_bf16()) rounding();
}
TEST(dot_products_of_pairs) {
  if (attile::has_avx512_bf16()) dots();
}

TEST_MAIN()
