// Tiles of AMX against a scalar product, and the powers of the softmax beside them: with the instructions where the CPU has them, tiles
// emulated where the build asks for it.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.hpp"
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

// clang-format off
#include "cpu/simd/amx.hpp"
#include "cpu/amx/softmax.hpp"
// clang-format on

using namespace attile::amx;

namespace {

struct Matrices {
  uint16_t a[16][32], b[16][16][2];
  float c[16][16];
};

Matrices random_matrices(uint32_t seed, bool small_integers) {
  Matrices x;
  const auto next = [&] {
    seed = seed * 1664525u + 1013904223u;
    const float integer = static_cast<float>(static_cast<int>(seed >> 16) % 17 - 8);
    return small_integers ? integer : static_cast<float>(static_cast<int32_t>(seed)) * 0x1p-30f;
  };
  for (auto& row : x.a)
    for (uint16_t& e : row) e = attile::float_to_bfloat16(next());
  for (auto& row : x.b)
    for (auto& pair : row)
      for (uint16_t& e : pair) e = attile::float_to_bfloat16(next());
  for (auto& row : x.c)
    for (float& e : row) e = next();
  return x;
}

// Tile numbers differ from call to call, rows lie `gap` bytes further apart than they must.
template <int kC, int kA, int kB>
std::vector<float> product(const Matrices& x, int64_t gap, bool from_zero) {
  const int64_t row = kTileRowBytes + gap;
  std::vector<char> a(16 * row, -1), b(16 * row, -1), c(16 * row + 1, -1);
  for (int m = 0; m < 16; ++m) {
    std::memcpy(&a[m * row], x.a[m], 64);
    std::memcpy(&b[m * row], x.b[m], 64);
    std::memcpy(&c[m * row], x.c[m], 64);
  }
  {
    const TileScope scope;
    if (from_zero) {
      tile_zero<kC>();
    } else {
      tile_load<kC>(c.data(), row);
    }
    tile_load<kA>(a.data(), row);
    tile_load<kB>(b.data(), row);
    tile_dot_bf16<kC, kA, kB>();
    tile_store<kC>(c.data(), row);
  }
  CHECK_EQ(static_cast<int>(c.back()), -1);
  std::vector<float> out(256);
  for (int m = 0; m < 16; ++m) {
    std::memcpy(&out[m * 16], &c[m * row], 64);
    for (int64_t i = 64; i < row; ++i) CHECK_EQ(static_cast<int>(c[m * row + i]), -1);
  }
  return out;
}

double expected(const Matrices& x, int m, int n, bool from_zero, double* magnitude) {
  double sum = from_zero ? 0 : x.c[m][n];
  *magnitude = std::abs(sum);
  for (int k = 0; k < 32; ++k) {
    const double term = static_cast<double>(attile::bfloat16_to_float(x.a[m][k])) * attile::bfloat16_to_float(x.b[k / 2][n][k % 2]);
    sum += term;
    *magnitude += std::abs(term);
  }
  return sum;
}

template <int kC, int kA, int kB>
void compare(uint32_t seed, int64_t gap, bool from_zero, bool small_integers) {
  const Matrices x = random_matrices(seed, small_integers);
  const std::vector<float> got = product<kC, kA, kB>(x, gap, from_zero);
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      double magnitude;
      const double want = expected(x, m, n, from_zero, &magnitude);
      CHECK(std::abs(got[m * 16 + n] - want) <= (small_integers ? 0 : 34 * 0x1p-24 * magnitude));
    }
  }
}

void products() {
  compare<0, 1, 2>(1, 0, true, true);
  compare<7, 6, 5>(2, 64, false, true);
  compare<3, 4, 0>(3, 6, false, true);
  compare<0, 4, 6>(4, 0, true, false);
  compare<5, 7, 1>(5, 192, false, false);
  compare<2, 0, 7>(6, 10, false, false);
}

// Subnormal inputs and results are zero though the MXCSR keeps them; infinity and NaN stay in their column.
void special_values() {
  Matrices x{};
  const auto set_b = [&](int n, float value) { x.b[0][n][0] = attile::float_to_bfloat16(value); };
  x.a[0][0] = attile::float_to_bfloat16(1.f);
  x.a[1][0] = 0x0001;  // the smallest subnormal
  x.a[2][0] = attile::float_to_bfloat16(0x1p-100f);
  set_b(0, 0x1p100f);
  set_b(1, 0x1p-100f);
  set_b(2, std::numeric_limits<float>::infinity());
  set_b(3, std::numeric_limits<float>::quiet_NaN());
  const std::vector<float> got = product<1, 2, 3>(x, 0, false);
  CHECK_EQ(got[0], 0x1p100f);
  CHECK_EQ(got[16], 0.f);
  CHECK_EQ(got[32 + 1], 0.f);
  CHECK_EQ(got[2], std::numeric_limits<float>::infinity());
  for (int m = 0; m < 16; ++m) CHECK(std::isnan(got[m * 16 + 3]));
  for (int m = 0; m < 16; ++m) CHECK_EQ(got[m * 16 + 4], 0.f);
}

// The largest relative error of 2^x between 2^-126 and 2^20, and what is no number.
template <int kDegree>
void powers(double tolerance) {
  constexpr float kInfinite = std::numeric_limits<float>::infinity();
  const auto power = [](float x) {
    Vec<float> powers[1] = {broadcast<float>(x)};
    powers_of_two<kDegree>(powers);
    return powers[0][0];
  };
  for (int i = 0; i <= 20000; ++i) {
    const float x = -125.9f + static_cast<float>(i) * 0.00729f;
    CHECK(std::abs(power(x) / std::exp2(static_cast<double>(x)) - 1) <= tolerance);
  }
  for (int n = -126; n <= 20; ++n) CHECK(std::abs(std::ldexp(power(static_cast<float>(n)), -n) - 1) <= tolerance);
  CHECK_EQ(power(-kInfinite), 0.f);
  CHECK_EQ(power(-1e30f), 0.f);
  CHECK_EQ(power(1e30f), kInfinite);
  CHECK_EQ(power(kInfinite), kInfinite);
  CHECK(std::isnan(power(std::numeric_limits<float>::quiet_NaN())));
}

// Two keys' p: to nearest, and large ones noticed, in the quick form by their sum.
template <int kDegree>
void group_of_two_keys() {
  constexpr int64_t kKeys = 32;
  alignas(64) float s[kKeys * kTileLanes];
  alignas(64) char p[kStepBytes];
  const Vec<float> base[2] = {};
  for (const float largest : {0.f, 7.8f, 8.1f, 200.f, std::numeric_limits<float>::infinity()}) {
    for (int64_t i = 0; i < kKeys * kTileLanes; ++i) s[i] = -0.01f * static_cast<float>(i % 700);
    s[5 * kTileLanes + 17] = largest;
    GroupSoftmax<1, kDegree> softmax;
    softmax.begin(s, p, kKeys, base, 1.f);
    softmax.advance(3);
    softmax.finish();
    CHECK_EQ(softmax.outgrown(), largest > 8);
    for (int64_t key = 0; key < kKeys; ++key) {
      for (int64_t row = 0; row < kTileLanes; ++row) {
        uint16_t got;
        std::memcpy(&got, p + row / 16 * kTileBytes + key / 2 * kTileRowBytes + row % 16 * 4 + key % 2 * 2, 2);
        const double want = std::exp2(static_cast<double>(s[key * kTileLanes + row]));
        if (want < 1000) CHECK(std::abs(attile::bfloat16_to_float(got) / want - 1) <= 0x1.02p-8 + 8e-5);
      }
    }
  }
}

void softmax_pieces() {
  powers<3>(7.6e-5);
  powers<4>(2.8e-6);
  powers<kAccurate>(2.5e-7);
  group_of_two_keys<3>();
  group_of_two_keys<kAccurate>();
}

}  // namespace

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
static void products() {}
static void special_values() {}
static void softmax_pieces() {}
#endif

TEST(tile_products) {
  if (attile::has_amx_bf16()) products();
}
TEST(special_values_in_tiles) {
  if (attile::has_amx_bf16()) special_values();
}
TEST(softmax_beside_tiles) {
  if (attile::has_amx_bf16()) softmax_pieces();
}

TEST_MAIN()
