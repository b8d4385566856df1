// Online softmax of a 64 x N score tile in the wgmma accumulator layout: thread t of a warp holds rows t/4 and t/4 + 8 and, of
// every 8 columns, 2 * (t % 4) and the next: s[4 i + 2 r + e] is (row r, column 8 i + 2 (t % 4) + e).
#pragma once

#include <cmath>

#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/math.cuh"

namespace attile::cuda::sm90 {

// kRaise: exponents are raised by so much (fp8).
template <int kRaise>
struct SoftmaxState {
  float max[2];  // of the raw scores, as last used for scaling
  float sum[2];  // this thread's columns only; joined over the four threads of a row at the end

  __device__ void reset() {
#pragma unroll
    for (int r = 0; r < 2; ++r) max[r] = -INFINITY, sum[r] = 0.f;
  }

  // One step is find_max, then exponentiate<0> and <1>: s <- exp2(scale * s - offset) with offset = scale * max. alpha is what
  // earlier sums and outputs must be multiplied by.
  // kGuard: some row may have no key yet (max = -inf). Full attention needs it in the first tile only, and its two
  // instructions sit on the critical path.
  template <bool kGuard, int kRegs>
  __device__ __forceinline__ void find_max(const float (&s)[kRegs], float scale_log2, float (&alpha)[2], float (&offset)[2],
                                           uint32_t zero) {
    find_row_max<0, kGuard>(s, scale_log2, alpha, offset, 0);
    find_row_max<1, kGuard>(s, scale_log2, alpha, offset, zero);
  }

  template <int r, bool kGuard, int kRegs>
  __device__ __forceinline__ void find_row_max(const float (&s)[kRegs], float scale_log2, float (&alpha)[2], float (&offset)[2],
                                               uint32_t zero) {
    float top = max[r];
    // A false dependence (zero is 0, the compiler does not know) puts the second row's max after the first row's, under exp2.
    if (r == 1) top = __uint_as_float(__float_as_uint(top) ^ (__float_as_uint(offset[0]) & zero));
    float other = s[2 * r + 1];
    top = fmaxf(top, s[2 * r]);
#pragma unroll
    for (int i = 1; i < kRegs / 4; ++i) top = fmaxf(top, s[4 * i + 2 * r]), other = fmaxf(other, s[4 * i + 2 * r + 1]);
    top = fmaxf(top, other);
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    offset[r] = kGuard && top == -INFINITY ? 0.f : top * scale_log2;
    alpha[r] = ptx::exp2_approx(fmaf(max[r], scale_log2, -offset[r]));
    if constexpr (kRaise > 0) offset[r] -= kRaise;
    max[r] = top;
  }

  // Eighths kFrom to kTo of the tile: the first four are the first row's.
  template <int kFrom, int kTo, int kRegs>
  __device__ __forceinline__ void exponentiate(float (&s)[kRegs], float scale_log2, const float (&alpha)[2],
                                               const float (&offset)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      constexpr int kColumns = kRegs / 4;
      const int from = kColumns * ::min(4, ::max(0, kFrom - 4 * r)) / 4, to = kColumns * ::min(4, ::max(0, kTo - 4 * r)) / 4;
      if (from < to && from == 0) sum[r] *= alpha[r];
#pragma unroll
      for (int i = 0; i < kColumns; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (i < from || i >= to) continue;
          float& x = s[4 * i + 2 * r + e];
          x = ptx::exp2_approx(fmaf(x, scale_log2, -offset[r]));
          sum[r] += x;
        }
    }
  }

  // Joins the four threads of each row. factor: what the output must be multiplied by; returns by lse the natural log-sum-exp.
  // sink_log2: log2 of an extra term of each row's sum (-inf: none). A row without keys: factor 0.
  __device__ __forceinline__ void finish(float scale_log2, const float (&sink_log2)[2], float (&factor)[2], float (&lse)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = sum[r];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      float top = max[r] * scale_log2 - kRaise, own = 1.f;
      if (sink_log2[r] != -INFINITY) {
        const float joined = fmaxf(top, sink_log2[r]);
        own = ptx::exp2_approx(top - joined);
        total = total * own + ptx::exp2_approx(sink_log2[r] - joined);
        top = joined;
      }
      constexpr float kLn2 = 0.6931471805599453f;
      factor[r] = max[r] == -INFINITY ? 0.f : own * ptx::reciprocal_approx(total);
      lse[r] = top == -INFINITY ? -INFINITY : (top + ptx::log2_approx(total)) * kLn2;
    }
  }
};

// A tile of bias, kRows rows in column blocks of kColumns keys as TMA lays them out, in the accumulator layout: that is what ldmatrix
// gives a thread of each 8 x 8 block. row: this warp's first.
template <int kRows, int kColumns, int kPairs>
__device__ __forceinline__ void load_bias_tile(uint32_t (&x)[kPairs][4], uint32_t bias, int row) {
  constexpr int kPieces = kColumns / 8;  // of 16 bytes a line; swizzled by the line, or by half of it
  const int lane = threadIdx.x % 32, line = row + lane % 16, turn = kPieces == 8 ? line % 8 : line / 2 % 4;
  const uint32_t at = bias + line * (kColumns * 2);
#pragma unroll
  for (int i = 0; i < 2 * kPairs; i += 2)
    ptx::ldmatrix_x4(x[i / 2], at + i / kPieces * (kRows * kColumns * 2) + (((i % kPieces + lane / 16) ^ turn) << 4));
}
// Whether some lane has a bias of -inf: the largest of all halves as unsigned numbers.
template <class Element, int kPairs>
__device__ __forceinline__ bool has_minus_infinity(const uint32_t (&x)[kPairs][4]) {
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) most = __vimax3_u16x2(__vimax3_u16x2(most, x[i][0], x[i][1]), x[i][2], x[i][3]);
  constexpr uint32_t kMinusInfinity = 0x8000 | Element::kExponent;
  return __any_sync(~0u, (most & 0xffff) >= kMinusInfinity || most >> 16 >= kMinusInfinity);
}
// s <- scale * s + bias; a bias of -inf means unseen, whatever the product was.
__device__ __forceinline__ float biased(float s, float scale, float bias) { return bias == -INFINITY ? bias : fmaf(s, scale, bias); }
template <class Element, int kRegs, int kPairs>
__device__ __forceinline__ void add_bias(float (&s)[kRegs], const uint32_t (&x)[kPairs][4], float scale, bool some_unseen) {
  static_assert(kRegs == 8 * kPairs);
  if (some_unseen) {
#pragma unroll
    for (int i = 0; i < kRegs / 2; ++i) {
      const float2 two = Element::unpack(x[i / 4][i % 4]);
      s[2 * i] = biased(s[2 * i], scale, two.x), s[2 * i + 1] = biased(s[2 * i + 1], scale, two.y);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kRegs / 2; ++i) {
    const float2 two = Element::unpack(x[i / 4][i % 4]);
    s[2 * i] = fmaf(s[2 * i], scale, two.x), s[2 * i + 1] = fmaf(s[2 * i + 1], scale, two.y);
  }
}

// The accumulator layout of 16 score columns is the A-operand layout of one wgmma step: P never leaves the registers.
template <class Element, int kRegs, int kSteps>
__device__ __forceinline__ void pack_p(const float (&s)[kRegs], uint32_t (&p)[kSteps][4]) {
  if constexpr (Element::kBytes == 1) {  // 32 keys a step; V's keys are in the order in which the layout has these (transpose.cuh)
#pragma unroll
    for (int i = 0; i < kSteps; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* from = s + 16 * i + 8 * (j / 2) + 2 * (j % 2);
        p[i][j] = ptx::pack_e4m3(from[0], from[1], from[4], from[5]);
      }
  } else {
#pragma unroll
    for (int i = 0; i < kSteps; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) p[i][j] = Element::pack(s[8 * i + 2 * j], s[8 * i + 2 * j + 1]);
  }
}

template <int kRegs>
__device__ __forceinline__ void scale_rows(float (&o)[kRegs], const float (&alpha)[2]) {
#pragma unroll
  for (int i = 0; i < kRegs; ++i) o[i] *= alpha[i / 2 % 2];
}

}  // namespace attile::cuda::sm90
