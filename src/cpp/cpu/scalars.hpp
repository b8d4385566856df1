// Single elements of any floating dtype, at any address. For the few that are read or written outside the kernels.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/dtype.hpp"

namespace attile {

template <class T>
T read_raw(const char* p) {
  T x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

inline float bfloat16_to_float(uint16_t h) { return std::bit_cast<float>(uint32_t{h} << 16); }
inline uint16_t float_to_bfloat16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return static_cast<uint16_t>(u >> 16 | 0x40);
  return static_cast<uint16_t>((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

inline float float16_to_float(uint16_t h) {
  const uint32_t sign = uint32_t{h & 0x8000u} << 16, exponent = h >> 10 & 31, mantissa = h & 0x3FFu;
  if (exponent == 0) return std::copysign(static_cast<float>(mantissa) * 0x1p-24f, std::bit_cast<float>(sign | 0x3F800000u));
  const uint32_t biased = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | biased << 23 | mantissa << 13);
}
inline uint16_t float_to_float16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x), sign = u >> 16 & 0x8000u, rest = u & 0x7FFFFFFFu;
  uint32_t half;
  if (rest > 0x7F800000u)
    half = 0x7E00;
  else if (rest >= 0x477FF000u)
    half = 0x7C00;  // 65520 and above round to infinity
  else if (rest < 0x38800000u)
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(rest) + 0.5f) - 0x3F000000u;
  else
    half = (rest + 0xFFF + (rest >> 13 & 1) - (112u << 23)) >> 13;
  return static_cast<uint16_t>(half | sign);
}

inline double read_floating(DType dtype, const char* p) {
  switch (dtype) {
    case DType::f64:
      return read_raw<double>(p);
    case DType::f32:
      return read_raw<float>(p);
    case DType::f16:
      return float16_to_float(read_raw<uint16_t>(p));
    default:
      return bfloat16_to_float(read_raw<uint16_t>(p));
  }
}

// Rounds once where x comes from float arithmetic; float64 is stored as it is.
inline void write_floating(DType dtype, char* p, double x) {
  const float f = static_cast<float>(x);
  const uint16_t half = dtype == DType::f16 ? float_to_float16(f) : float_to_bfloat16(f);
  if (dtype == DType::f64)
    std::memcpy(p, &x, 8);
  else if (dtype == DType::f32)
    std::memcpy(p, &f, 4);
  else
    std::memcpy(p, &half, 2);
}

inline int64_t read_index(DType dtype, const char* p) { return dtype == DType::i64 ? read_raw<int64_t>(p) : read_raw<int32_t>(p); }

}  // namespace attile
