// An output warpgroup's accumulators, and how a lane's part of them goes to memory.
#pragma once

#include "cuda/mla_decode/sm90/traits.cuh"

namespace attile::cuda::mla_sm90 {

// Four lanes have each a quarter (2 columns) of four 8-column groups: lane q gets all of group q.
__device__ __forceinline__ int4 gather_group(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  const uint32_t ab = __shfl_xor_sync(~0u, odd ? a : b, 1), cd = __shfl_xor_sync(~0u, odd ? c : d, 1);
  if (odd)
    a = ab, c = cd;
  else
    b = ab, d = cd;
  const uint32_t ac = __shfl_xor_sync(~0u, high ? a : c, 2), bd = __shfl_xor_sync(~0u, high ? b : d, 2);
  if (high)
    a = ac, b = bd;
  else
    c = ac, d = bd;
  return make_int4(a, b, c, d);
}

template <class T>
struct Output {
  float o[T::kHalfBoxes * 32];
  static constexpr int kCount = T::kHalfBoxes * 32;
  using Piece = float[kCount / T::kOutPieces];
  __device__ __forceinline__ Piece& piece(int c) {
    if constexpr (T::kOutPieces == 1)
      return o;
    else
      return reinterpret_cast<Piece*>(o)[c];
  }

  __device__ __forceinline__ void rescale(float scale0, float scale1) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) o[i] *= scale0, o[i + 1] *= scale0, o[i + 2] *= scale1, o[i + 3] *= scale1;
  }
  // The columns of row e (0: row0, 1: row0 + 8) to a 16-bit row; columns: how many there are from `out` on.
  __device__ __forceinline__ void store(uint16_t* out, bool aligned, int e, float inv, bool live, int columns) {
    const int q = threadIdx.x & 3;
    if (!aligned) {
#pragma unroll
      for (int g = 0; g < T::kHalfBoxes * 8; ++g)
        if (live && g * 8 < columns) {
          const uint32_t x = T::Element::pack(o[g * 4 + e * 2] * inv, o[g * 4 + e * 2 + 1] * inv);
          out[g * 8 + q * 2] = static_cast<uint16_t>(x), out[g * 8 + q * 2 + 1] = static_cast<uint16_t>(x >> 16);
        }
      return;
    }
#pragma unroll
    for (int g = 0; g < T::kHalfBoxes * 8; g += 4) {
      uint32_t x[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) x[j] = T::Element::pack(o[(g + j) * 4 + e * 2] * inv, o[(g + j) * 4 + e * 2 + 1] * inv);
      const int4 v = gather_group(x[0], x[1], x[2], x[3]);
      if (live && (g + q) * 8 < columns) *reinterpret_cast<int4*>(out + (g + q) * 8) = v;
    }
  }
  // Likewise to a float32 row: 32 bytes of a row by four lanes.
  __device__ __forceinline__ void store_partial(float* out, int e, float inv, bool live, int columns) {
    const int q = threadIdx.x & 3;
#pragma unroll
    for (int g = 0; g < T::kHalfBoxes * 8; ++g)
      if (live && g * 8 < columns)
        *reinterpret_cast<float2*>(out + g * 8 + q * 2) = make_float2(o[g * 4 + e * 2] * inv, o[g * 4 + e * 2 + 1] * inv);
  }
};

}  // namespace attile::cuda::mla_sm90
