// The products of a warp's 16 kM query rows with a tile of kN keys, on tensor cores:
//
//   scores_product   s[kM][kN / 8] += Q K^T       Q and K in shared memory, rows of dims
//   values_product   o[kM][.. / 8] += P V         P in the registers where s was, V in shared memory, a row a key
//   shared_product   o[kM][.. / 8] += A B         both in shared memory
//
// s[m][n] are the four sums of mma.sync: of lane l, rows 16 m + l / 4 and 8 more, columns 8 n + 2 (l % 4) and the next. For 16-bit
// elements that is, packed, the A operand of P V; for float32 it is one too when key 2 (l % 4) is called l % 4 and the next
// l % 4 + 4, in P and V alike.
//
// float32: x = hi + lo, two TF32 numbers of 11 bits; hi hi + hi lo + lo hi is short of the product by about 2^-22. Tensor cores
// truncate their sums, so the small products have sums of their own, and those of 32 dims, or of a tile's keys, are added in float32.
#pragma once

#include <type_traits>

#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/tile/element.cuh"
#include "cuda/tile/rows.cuh"

namespace attile::cuda {

// Where a lane of a warp begins to read, relative to a tile of rows of `stride` bytes.
__device__ __forceinline__ uint32_t lane_offset_a(uint32_t stride) {  // 16 rows, 32 bytes
  const uint32_t lane = threadIdx.x % 32;
  return lane % 16 * stride + lane / 16 * 16;
}
__device__ __forceinline__ uint32_t lane_offset_b(uint32_t stride) {  // likewise, in the order of B
  const uint32_t lane = threadIdx.x % 32;
  return (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 16;
}

// Likewise in rows of keys of values_product.
template <class Element>
__device__ __forceinline__ uint32_t lane_offset_values(uint32_t stride) {
  const uint32_t lane = threadIdx.x % 32;
  return Element::kBytes == 2 ? lane_offset_a(stride) : lane % 4 * 2 * stride + lane / 4 * 4;
}

struct Tf32Pair {
  uint32_t hi, lo;
};

// An infinite hi has lo = 0, for infinity times 0 is no number.
__device__ __forceinline__ Tf32Pair split_tf32(float x) {
  const uint32_t hi = ptx::round_to_tf32(x);
  const float rest = x - __uint_as_float(hi);
  return {hi, fabsf(__uint_as_float(hi)) < INFINITY ? __float_as_uint(rest) : 0u};
}

// Steps of 32 bytes of dims. q, k: addresses with lane offsets. kTrim: of the kSteps compiled `steps` are enough; tested every four.
template <class Element, int kM, int kN, int kSteps, bool kTrim, uint32_t kStride>
__device__ __forceinline__ void scores_product(float (&s)[kM][kN / 8][4], uint32_t q, uint32_t k, int steps, bool exact) {
  if constexpr (Element::kBytes == 2) {
    // Fragments are asked for one product of 16 keys ahead.
    constexpr int kKeys = kN / 16;
    uint32_t a[2][kM][4], b[2][4];
    const auto load_a = [&](int step) {
#pragma unroll
      for (int m = 0; m < kM; ++m) ptx::ldmatrix_x4(a[step % 2][m], q + m * 16 * kStride + step * 32);
    };
    const auto load_b = [&](int i) { ptx::ldmatrix_x4(b[i % 2], k + i % kKeys * 16 * kStride + i / kKeys * 32); };
    load_a(0);
    load_b(0);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (kTrim && step % 4 == 0 && step >= steps) break;
#pragma unroll
      for (int n = 0; n < kKeys; ++n) {
        const int i = step * kKeys + n;
        if (i + 1 < kSteps * kKeys) load_b(i + 1);
        if (n == 0 && step + 1 < kSteps) load_a(step + 1);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          Element::mma(s[m][2 * n], a[step % 2][m], b[i % 2][0], b[i % 2][1]);
          Element::mma(s[m][2 * n + 1], a[step % 2][m], b[i % 2][2], b[i % 2][3]);
        }
      }
    }
  } else {
    constexpr int kPart = kSteps < 4 ? kSteps : 4;
    static_assert(kSteps % kPart == 0);
#pragma unroll(kSteps / kPart <= 2 ? 2 : 1)
    for (int part = 0; part < kSteps; part += kPart) {
      if (kTrim && part >= steps) break;
      float sum[kM][kN / 8][4] = {}, small[kM][kN / 8][4] = {};
#pragma unroll
      for (int step = 0; step < kPart; ++step) {
        uint32_t hi[kM][4], lo[kM][4];
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          uint32_t a[4];
          ptx::ldmatrix_x4(a, q + m * 16 * kStride + (part + step) * 32);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const Tf32Pair x = split_tf32(__uint_as_float(a[i]));
            hi[m][i] = x.hi, lo[m][i] = x.lo;
          }
        }
#pragma unroll
        for (int n = 0; n < kN / 16; ++n) {
          uint32_t b[4];
          ptx::ldmatrix_x4(b, k + n * 16 * kStride + (part + step) * 32);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const Tf32Pair b0 = split_tf32(__uint_as_float(b[2 * h])), b1 = split_tf32(__uint_as_float(b[2 * h + 1]));
#pragma unroll
            for (int m = 0; m < kM; ++m) ptx::mma_tf32(sum[m][2 * n + h], hi[m], b0.hi, b1.hi);
            if (exact) {
#pragma unroll
              for (int m = 0; m < kM; ++m) {
                ptx::mma_tf32(small[m][2 * n + h], lo[m], b0.hi, b1.hi);
                ptx::mma_tf32(small[m][2 * n + h], hi[m], b0.lo, b1.lo);
              }
            }
          }
        }
      }
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int n = 0; n < kN / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) s[m][n][i] += sum[m][n][i] + small[m][n][i];
    }
  }
}

// v: the tile's address, with lane offset. kTrim: of the kColumns of V compiled `columns` exist; tested every 64. make(step, part, parts): for
// 16-bit elements, makes a part of P of 16 keys, p[..][2 step] and the next, while products of the keys before are under way.
struct Made {
  __device__ __forceinline__ void operator()(int, int, int) const {}
};

template <class Element, int kM, int kN, int kColumns, bool kTrim, uint32_t kStride, class Make = Made>
__device__ __forceinline__ void values_product(float (&o)[kM][kColumns / 8][4], const float (&p)[kM][kN / 8][4], uint32_t v, int columns,
                                               bool exact, Make make = {}) {
  static_assert(!kTrim || std::is_same_v<Make, Made>);
  if constexpr (Element::kBytes == 2) {
    constexpr int kParts = kColumns / 16;
    uint32_t b[2][4];
    const auto load_b = [&](int i) { ptx::ldmatrix_x4_trans(b[i % 2], v + i / kParts * 16 * kStride + i % kParts * 32); };
    load_b(0);
    make(0, 0, 1);
#pragma unroll
    for (int step = 0; step < kN / 16; ++step) {
      uint32_t a[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) a[m][i] = Element::pack(p[m][2 * step + i / 2][2 * (i % 2)], p[m][2 * step + i / 2][2 * (i % 2) + 1]);
      if (kTrim && step > 0) load_b(step * kParts);
#pragma unroll
      for (int n = 0; n < kParts; ++n) {
        if (kTrim && n % 4 == 0 && n * 16 >= columns) break;
        const int i = step * kParts + n;
        if (kTrim ? n + 1 < kParts : i + 1 < kN / 16 * kParts) load_b(i + 1);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          Element::mma(o[m][2 * n], a[m], b[i % 2][0], b[i % 2][1]);
          Element::mma(o[m][2 * n + 1], a[m], b[i % 2][2], b[i % 2][3]);
        }
        if (step + 1 < kN / 16) make(step + 1, n, kParts);
      }
    }
  } else {
    constexpr int kPart = kColumns < 64 ? kColumns : 64;
#pragma unroll
    for (int part = 0; part < kColumns / kPart; ++part) {
      if (kTrim && part * kPart >= columns) break;
      float sum[kM][kPart / 8][4] = {};
#pragma unroll
      for (int step = 0; step < kN / 8; ++step) {
        uint32_t hi[kM][4], lo[kM][4];
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const Tf32Pair x = split_tf32(p[m][step][i % 2 * 2 + i / 2]);
            hi[m][i] = x.hi, lo[m][i] = x.lo;
          }
#pragma unroll
        for (int n = 0; n < kPart / 8; ++n) {
          const uint32_t at = v + step * 8 * kStride + part * kPart * 4 + n * 32;
          const Tf32Pair b0 = split_tf32(__uint_as_float(ptx::load_shared(at)));
          const Tf32Pair b1 = split_tf32(__uint_as_float(ptx::load_shared(at + kStride)));
          if (exact) {
#pragma unroll
            for (int m = 0; m < kM; ++m) {
              ptx::mma_tf32(sum[m][n], lo[m], b0.hi, b1.hi);
              ptx::mma_tf32(sum[m][n], hi[m], b0.lo, b1.lo);
            }
          }
#pragma unroll
          for (int m = 0; m < kM; ++m) ptx::mma_tf32(sum[m][n], hi[m], b0.hi, b1.hi);
        }
      }
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int n = 0; n < kPart / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) o[m][part * (kPart / 8) + n][i] += sum[m][n][i];
    }
  }
}

// o[kM][.. / 8] += A B of 16-bit elements, both in shared memory: A a row each of the 16 kM, or, transposed, each of kDepth; B a row each of
// kDepth. Addresses without lane offsets.
template <class Element, int kM, int kColumns, int kDepth, bool kTransposed, uint32_t kStrideA, uint32_t kStrideB>
__device__ __forceinline__ void shared_product(float (&o)[kM][kColumns / 8][4], uint32_t a, uint32_t b) {
  constexpr int kSteps = kDepth / 16, kParts = kColumns / 16;
  a += kTransposed ? lane_offset_b(kStrideA) : lane_offset_a(kStrideA);
  b += lane_offset_a(kStrideB);
  uint32_t rows[2][kM][4], columns[2][4];
  const auto load_a = [&](int step) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      if constexpr (kTransposed) {
        ptx::ldmatrix_x4_trans(rows[step % 2][m], a + step * 16 * kStrideA + m * 32);
      } else {
        ptx::ldmatrix_x4(rows[step % 2][m], a + m * 16 * kStrideA + step * 32);
      }
    }
  };
  const auto load_b = [&](int i) { ptx::ldmatrix_x4_trans(columns[i % 2], b + i / kParts * 16 * kStrideB + i % kParts * 32); };
  load_a(0);
  load_b(0);
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int n = 0; n < kParts; ++n) {
      const int i = step * kParts + n;
      if (i + 1 < kSteps * kParts) load_b(i + 1);
      if (n == 0 && step + 1 < kSteps) load_a(step + 1);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        Element::mma(o[m][2 * n], rows[step % 2][m], columns[i % 2][0], columns[i % 2][1]);
        Element::mma(o[m][2 * n + 1], rows[step % 2][m], columns[i % 2][2], columns[i % 2][3]);
      }
    }
}

}  // namespace attile::cuda
