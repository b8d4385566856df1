// The latent part of Q beside float8 latents: float16, each row times a power of two that brings its largest number to 2^14. What becomes
// subnormal by that is 2^28 times smaller.
#pragma once

#include "cuda/mla_decode/sm90/traits.cuh"

namespace attile::cuda::mla_sm90 {

struct RowScale {
  float to_f16, back;
};

// largest: two magnitudes of bfloat16, of a row's columns that four lanes share.
__device__ __forceinline__ RowScale row_scale(uint32_t largest) {
  uint32_t x = max(largest & 0xffff, largest >> 16);
  x = max(x, __shfl_xor_sync(~0u, x, 1)), x = max(x, __shfl_xor_sync(~0u, x, 2));
  const uint32_t exponent = max(x >> 7, 15u);
  if (exponent == 255) return {1, 1};  // infinite, or NaN
  return {__uint_as_float((268 - exponent) << 23), __uint_as_float((exponent - 14) << 23)};
}
__device__ __forceinline__ uint32_t to_f16(uint32_t two, float scale) {
  const float2 x = Bf16::unpack(two);
  return F16::pack(x.x * scale, x.y * scale);
}

// The fragments of a row of Q in registers; the last tile's stay in `last`, which goes to shared memory.
template <int n>
__device__ __forceinline__ void scale_query(uint32_t (&q)[n][4], uint32_t (&last)[4][4], float ckv_scale, float& back0, float& back1) {
  uint32_t largest[2] = {};
  const auto look = [&](const uint32_t (&x)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) largest[i & 1] = __vmaxu2(largest[i & 1], x[i] & 0x7fff7fff);
  };
#pragma unroll
  for (int k = 0; k < n; ++k) look(q[k]);
#pragma unroll
  for (int k = 0; k < 4; ++k) look(last[k]);
  const RowScale row[2] = {row_scale(largest[0]), row_scale(largest[1])};
#pragma unroll
  for (int k = 0; k < n; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) q[k][i] = to_f16(q[k][i], row[i & 1].to_f16);
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) last[k][i] = to_f16(last[k][i], row[i & 1].to_f16);
  back0 = row[0].back * ckv_scale, back1 = row[1].back * ckv_scale;
}

}  // namespace attile::cuda::mla_sm90
