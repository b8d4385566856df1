// The vector type of one instruction set against scalar arithmetic; included by test_simd*.cpp after simd/<isa>.hpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <vector>

#include "check.hpp"
#include "cpu/denormals.hpp"
#include "cpu/scalars.hpp"
#include "cpu/simd/convert.hpp"
#include "cpu/simd/math.hpp"
#include "cpu/simd/transpose.hpp"

namespace simd_checks {

using namespace attile::ATTILE_ISA;
using attile::DType;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();

template <class T, class F>
std::vector<T> map(const std::vector<T>& in, F f) {
  std::vector<T> out(in.size());
  for (size_t i = 0; i < in.size(); i += kLanes<T>) store(&out[i], f(load<Vec<T>>(&in[i])));
  return out;
}

// Errors in units of T's epsilon, relative to the exact value.
template <class T, class F, class G>
double worst_error(double low, double high, F vectors, G exact) {
  std::vector<T> x;
  for (int i = 0; i < 200000; ++i) x.push_back(static_cast<T>(low + (high - low) * i / 199999));
  const std::vector<T> y = map<T>(x, vectors);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const long double e = exact(static_cast<long double>(x[i]));
    if (std::fabs(static_cast<double>(e)) < static_cast<double>(std::numeric_limits<T>::min())) continue;
    worst = std::max(worst, static_cast<double>(std::fabs((y[i] - e) / e)) / std::numeric_limits<T>::epsilon());
  }
  return worst;
}

template <class T>
void exponential() {
  const auto vectors = [](Vec<T> x) { return exp2<T>(x); };
  const auto exact = [](long double x) { return std::exp2(x); };
  const double lowest = 1 - Bits<T>::kBias;
  CHECK(worst_error<T>(lowest, 0, vectors, exact) < 1.5);
  CHECK(worst_error<T>(-4, 0.01, vectors, exact) < 1.5);
  CHECK(worst_error<T>(-1e-3, 0, vectors, exact) < 1.5);

  const attile::FlushDenormals mode;  // as kernels run: what lies below the smallest normal number is 0
  std::vector<T> x(kLanes<T>, 0);
  for (const auto& [in, out] :
       std::vector<std::pair<double, double>>{{0, 1}, {-1, 0.5}, {-kInf, 0}, {-1e30, 0}, {-Bits<T>::kBias - 0.25, 0}, {kNaN, kNaN}}) {
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      std::fill(x.begin(), x.end(), T{-3});
      x[lane] = static_cast<T>(in);
      const std::vector<T> y = map<T>(x, vectors);
      CHECK(std::isnan(out) ? std::isnan(y[lane]) : y[lane] == static_cast<T>(out));
      for (int other = 0; other < kLanes<T>; ++other)
        if (other != lane) CHECK_EQ(y[other], T{0.125});
    }
  }
}

template <class T>
void hyperbolic_tangent() {
  const auto vectors = [](Vec<T> x) { return attile::ATTILE_ISA::tanh<T>(x); };
  const auto exact = [](long double x) { return std::tanh(x); };
  CHECK(worst_error<T>(-20, 20, vectors, exact) < 4);
  CHECK(worst_error<T>(-1, 1, vectors, exact) < 4);
  CHECK(worst_error<T>(-1e-3, 1e-3, vectors, exact) < 4);
  CHECK(worst_error<T>(1e-12, 1e-10, vectors, exact) < 4);
  std::vector<T> x(kLanes<T>, 0);
  x[0] = static_cast<T>(kInf);
  x[1] = static_cast<T>(kNaN);
  const std::vector<T> y = map<T>(x, vectors), z = map<T>(x, [&](Vec<T> v) { return vectors(Vec<T>{} - v); });
  CHECK_EQ(y[0], T{1});
  CHECK_EQ(z[0], T{-1});
  CHECK(std::isnan(y[1]));
  const std::vector<T> zero = map<T>(std::vector<T>(kLanes<T>, 0), vectors);
  CHECK(zero[0] == 0 && !std::signbit(zero[0]));
}

template <class T>
void maximum() {
  const T one = 1, nan = static_cast<T>(kNaN);
  CHECK_EQ(attile::ATTILE_ISA::max(broadcast<T>(one), broadcast<T>(2))[0], T{2});
  CHECK_EQ(attile::ATTILE_ISA::max(broadcast<T>(nan), broadcast<T>(one))[0], one);
  CHECK(std::isnan(attile::ATTILE_ISA::max(broadcast<T>(one), broadcast<T>(nan))[0]));
}

template <class T>
void transposing() {
  Vec<T> x[kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i)
    for (int j = 0; j < kLanes<T>; ++j) x[i][j] = static_cast<T>(100 * i + j);
  transpose<T>(x);
  for (int i = 0; i < kLanes<T>; ++i)
    for (int j = 0; j < kLanes<T>; ++j) CHECK_EQ(x[i][j], static_cast<T>(100 * j + i));
}

// Rows at any address, nothing beyond them read.
template <class T>
void transposing_from_memory() {
  constexpr int kRow = kLanes<T> + 3;
  std::vector<char> memory(kLanes<T> * kRow * sizeof(T) + 1);
  const auto row_at = [&](int l) { return &memory[l * kRow * sizeof(T) + 1]; };
  for (int i = 0; i < kLanes<T>; ++i)
    for (int j = 0; j < kLanes<T>; ++j) store(row_at(i) + j * sizeof(T), static_cast<T>(100 * i + j));
  Vec<T> x[kLanes<T>];
  load_transposed<T>(row_at, x);
  for (int i = 0; i < kLanes<T>; ++i)
    for (int j = 0; j < kLanes<T>; ++j) CHECK_EQ(x[i][j], static_cast<T>(100 * j + i));
}

inline double value_of(DType dtype, uint16_t half) {
  return dtype == DType::f16 ? attile::float16_to_float(half) : attile::bfloat16_to_float(half);
}
inline uint16_t half_of(DType dtype, float x) { return dtype == DType::f16 ? attile::float_to_float16(x) : attile::float_to_bfloat16(x); }

// Every half to lanes and back; floats around every rounding boundary of the halves.
template <class T, class Format>
void halves(DType dtype) {
  const auto same = [](double a, double b) { return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b); };
  for (uint32_t first = 0; first < 65536; first += kLanes<T>) {
    uint16_t in[kLanes<T>], back[kLanes<T>];
    for (int l = 0; l < kLanes<T>; ++l) in[l] = static_cast<uint16_t>(first + l);
    const Vec<T> x = load_as<T, Format>(in);
    store_as<T, Format>(back, x);
    for (int l = 0; l < kLanes<T>; ++l) {
      const double expected = value_of(dtype, in[l]);
      CHECK(same(expected, x[l]));
      CHECK(same(expected, value_of(dtype, back[l])));
    }
  }
  std::vector<float> probes;
  for (uint32_t h = 0; h < 0x7FFF; ++h) {
    const uint16_t low = static_cast<uint16_t>(h), high = static_cast<uint16_t>(h + 1);
    const float a = static_cast<float>(value_of(dtype, low)), b = static_cast<float>(value_of(dtype, high));
    if (!std::isfinite(a) || !std::isfinite(b)) continue;
    const float middle = a + (b - a) / 2;
    for (const float x : {std::nextafterf(middle, a), middle, std::nextafterf(middle, b)}) {
      probes.push_back(x);
      probes.push_back(-x);
    }
  }
  for (const float x : {65519.99f, 65520.f, 1e30f, 3.4e38f, static_cast<float>(kInf), static_cast<float>(kNaN), -0.f, 1e-30f, 1e-8f})
    probes.push_back(x);
  while (probes.size() % 16 != 0) probes.push_back(1);
  for (size_t i = 0; i < probes.size(); i += kLanes<float>) {
    uint16_t got[kLanes<float>];
    store_as<float, Format>(got, load<Vec<float>>(&probes[i]));
    for (int l = 0; l < kLanes<float>; ++l) CHECK(same(value_of(dtype, half_of(dtype, probes[i + l])), value_of(dtype, got[l])));
  }
  // A double is rounded once: 1 + half a unit + a little is above the middle, though as float32 it would be on it.
  const double unit = dtype == DType::f16 ? 0x1p-10 : 0x1p-7;
  for (const double scale : {1.0, 0x1p-13, -3.0, 1000.0}) {
    const Vec<double> y = round_to<Format>(broadcast<double>(scale * (1 + unit / 2 + 0x1p-40)));
    const double ulp = std::ldexp(unit, std::ilogb(scale * (1 + unit)));
    CHECK(std::fabs(y[0] - scale * (1 + unit / 2 + 0x1p-40)) <= ulp / 2);
    CHECK(std::fmod(y[0], ulp) == 0);
  }
  CHECK_EQ(round_to<Format>(broadcast<double>(1 + unit / 2 + 0x1p-40))[0], 1 + unit);
  CHECK_EQ(round_to<Format>(broadcast<double>(1 + unit / 2))[0], 1.0);
  CHECK_EQ(round_to<Format>(broadcast<double>(-kInf))[0], -kInf);
  CHECK(std::isnan(round_to<Format>(broadcast<double>(kNaN))[0]));
}

template <class T, class Element>
void masks() {
  Element in[kLanes<T>];
  for (int set = -1; set < kLanes<T>; ++set) {
    for (int bit = 0; bit < static_cast<int>(8 * sizeof(Element)); ++bit) {
      for (int l = 0; l < kLanes<T>; ++l) in[l] = l == set ? static_cast<Element>(uint64_t{1} << bit) : Element{0};
      const Vec<T> m = load_mask<T, Element>(in);
      for (int l = 0; l < kLanes<T>; ++l) CHECK_EQ(m[l], l == set ? T{0} : static_cast<T>(-kInf));
    }
  }
}

template <class T>
void all_of() {
  exponential<T>();
  hyperbolic_tangent<T>();
  maximum<T>();
  transposing<T>();
  transposing_from_memory<T>();
  halves<T, F16>(DType::f16);
  halves<T, Bf16>(DType::bf16);
  masks<T, int8_t>();
  masks<T, int16_t>();
  masks<T, int32_t>();
  masks<T, int64_t>();
}

}  // namespace simd_checks
