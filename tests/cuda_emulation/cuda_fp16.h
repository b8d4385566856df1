// float16 of CUDA.
#pragma once

struct __half {
  uint16_t bits;
  operator float() const { return static_cast<float>(emulation::bits<_Float16>(bits)); }
};
struct __half2 {
  __half x, y;
};

inline __half __ushort_as_half(uint16_t x) { return {x}; }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) { return x; }
inline __half __float2half_rn(float x) { return {emulation::bits<uint16_t>(static_cast<_Float16>(x))}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline float2 __half22float2(__half2 x) { return {x.x, x.y}; }

// NaN is dropped where there is a number; also of two bfloat16.
template <class Pair>
Pair __hmin2(Pair a, Pair b) {
  const auto smaller = [](auto x, auto y) { return isnan(static_cast<float>(x)) || static_cast<float>(y) < static_cast<float>(x) ? y : x; };
  return {smaller(a.x, b.x), smaller(a.y, b.y)};
}
