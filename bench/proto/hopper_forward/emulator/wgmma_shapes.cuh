// The products for the CPU: each thread computes its own accumulators, reading shared memory as the descriptors say.
#pragma once

#include "ptx.cuh"

namespace ptx {
inline uint32_t field(uint64_t d, int bit) { return (d >> bit & 0x3FFF) << 4; }

// Row (m or n) and k of a K-major operand.
template <class Element>
float k_major(uint64_t d, int row, int k) {
  uint16_t x;
  std::memcpy(&x, at(swizzle(field(d, 0) + row / 8 * field(d, 32) + row % 8 * 128 + k * 2)), 2);
  return to_float<Element>(x);
}
template <class Element>
float mn_major(uint64_t d, int n, int k) {
  uint16_t x;
  std::memcpy(&x, at(swizzle(field(d, 0) + n / 64 * field(d, 16) + k / 8 * field(d, 32) + k % 8 * 128 + n % 64 * 2)), 2);
  return to_float<Element>(x);
}

template <class Element, int kTransposeB, int kRegs>
void product(float (&d)[kRegs], const float (&a)[2][16], uint64_t b, int accumulate) {
  for (int i = 0; i < kRegs / 4; ++i)
    for (int e = 0; e < 2; ++e) {
      const int column = 8 * i + 2 * (threadIdx.x % 4) + e;
      float sum[2] = {0, 0};
      for (int k = 0; k < 16; ++k) {
        const float x = kTransposeB ? mn_major<Element>(b, column, k) : k_major<Element>(b, column, k);
        for (int r = 0; r < 2; ++r) sum[r] += a[r][k] * x;
      }
      for (int r = 0; r < 2; ++r) d[4 * i + 2 * r + e] = (accumulate ? d[4 * i + 2 * r + e] : 0) + sum[r];
    }
}
template <class Element, int kTransposeB, int kRegs>
void wgmma_ss(float (&d)[kRegs], uint64_t a, uint64_t b, int accumulate) {
  const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  float values[2][16];
  for (int r = 0; r < 2; ++r)
    for (int k = 0; k < 16; ++k) values[r][k] = k_major<Element>(a, row + 8 * r, k);
  product<Element, kTransposeB>(d, values, b, accumulate);
}
template <class Element, int kTransposeB, int kRegs>
void wgmma_rs(float (&d)[kRegs], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  float values[2][16];
  for (int j = 0; j < 4; ++j) {  // register j: row j % 2, columns from 8 (j / 2)
    const auto quad = exchange(a[j]);
    for (int q = 0; q < 4; ++q) {
      const uint32_t two = quad[threadIdx.x % 32 / 4 * 4 + q];
      unpack<Element>(two, values[j % 2][j / 2 * 8 + 2 * q], values[j % 2][j / 2 * 8 + 2 * q + 1]);
    }
  }
  product<Element, kTransposeB>(d, values, b, accumulate);
}
}  // namespace ptx
