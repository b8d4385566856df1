// The element types of the generic kernels: how two become a word, how they multiply, how they are stored.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "core/dtype.hpp"
#include "cuda/ptx/mma.cuh"

namespace attile::cuda {

struct Bf16 {
  using Storage = uint16_t;
  static constexpr DType kType = DType::bf16;
  static constexpr int kBytes = 2;
  static constexpr Storage kExponent = 0x7f80;
  static __device__ __forceinline__ uint32_t pack(float x, float y) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
    return reinterpret_cast<const uint32_t&>(pair);
  }
  static __device__ __forceinline__ float2 unpack(uint32_t x) { return {__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)}; }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma_bf16(c, a, b0, b1);
  }
};

struct F16 {
  using Storage = uint16_t;
  static constexpr DType kType = DType::f16;
  static constexpr int kBytes = 2;
  static constexpr Storage kExponent = 0x7c00;
  static __device__ __forceinline__ uint32_t pack(float x, float y) {
    const __half2 pair = __floats2half2_rn(x, y);
    return reinterpret_cast<const uint32_t&>(pair);
  }
  static __device__ __forceinline__ float2 unpack(uint32_t x) { return __half22float2(reinterpret_cast<const __half2&>(x)); }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma_f16(c, a, b0, b1);
  }
};

struct F32 {
  using Storage = uint32_t;
  static constexpr DType kType = DType::f32;
  static constexpr int kBytes = 4;
  static constexpr Storage kExponent = 0x7f800000;
};

// An unsigned number at any address.
template <class T>
__device__ __forceinline__ T load_unaligned(const char* p) {
  if ((reinterpret_cast<uintptr_t>(p) & (sizeof(T) - 1)) == 0) return *reinterpret_cast<const T*>(p);
  uint64_t x = 0;
#pragma unroll 1
  for (int i = 0; i < static_cast<int>(sizeof(T)); ++i) x |= static_cast<uint64_t>(static_cast<uint8_t>(p[i])) << (8 * i);
  return static_cast<T>(x);
}

template <class T>
__device__ __forceinline__ void store_unaligned(char* p, T x) {
  if ((reinterpret_cast<uintptr_t>(p) & (sizeof(T) - 1)) == 0) {
    *reinterpret_cast<T*>(p) = x;
    return;
  }
#pragma unroll 1
  for (int i = 0; i < static_cast<int>(sizeof(T)); ++i) p[i] = static_cast<char>(static_cast<uint64_t>(x) >> (8 * i));
}

// Elements x and, if `two`, y, side by side at p.
template <class Element>
__device__ __forceinline__ void store_pair(char* p, float x, float y, bool two) {
  if constexpr (Element::kBytes == 4) {
    if (two && (reinterpret_cast<uintptr_t>(p) & 7) == 0) {
      *reinterpret_cast<float2*>(p) = make_float2(x, y);
      return;
    }
    store_unaligned<uint32_t>(p, __float_as_uint(x));
    if (two) store_unaligned<uint32_t>(p + 4, __float_as_uint(y));
  } else {
    const uint32_t pair = Element::pack(x, y);
    if (two && (reinterpret_cast<uintptr_t>(p) & 3) == 0) {
      *reinterpret_cast<uint32_t*>(p) = pair;
      return;
    }
    store_unaligned<uint16_t>(p, static_cast<uint16_t>(pair));
    if (two) store_unaligned<uint16_t>(p + 2, static_cast<uint16_t>(pair >> 16));
  }
}

}  // namespace attile::cuda
