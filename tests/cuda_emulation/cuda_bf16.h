// bfloat16 of CUDA.
#pragma once

#include "cuda_fp16.h"

struct __nv_bfloat16 {
  uint16_t bits;
  operator float() const { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
// To the nearest, ties to even.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const uint32_t word = __float_as_uint(x);
  return {static_cast<uint16_t>(isnan(x) ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }
