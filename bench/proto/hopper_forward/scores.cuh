// What may happen to a score between Q K^T and the softmax: scale, bias, soft cap; then mask and segment ids.
//   x = s * softmax_scale + bias;  x = softcap * tanh(x / softcap);  -inf where masked or of another segment
#pragma once

#ifdef __CUDACC__
#include "ptx.cuh"
#endif

#include <cmath>
#include <cstdint>

struct ScoreParams {
  float scale;    // softmax_scale
  float softcap;  // 0: none
  const void* bias;  // null, or of the inputs' type: [batch][head][query][key], keys contiguous, rows 4-byte aligned
  int64_t bias_batch, bias_head, bias_row;
  const uint8_t* mask;  // null, or nonzero = attend; as bias, rows 2-byte aligned
  int64_t mask_batch, mask_head, mask_row;
};

// s <- tanh(k s), where softcap * tanh(s * softmax_scale / softcap) is wanted and the exponents carry the factor softcap.
// An odd polynomial on the FMA units where a warp's scores allow it (error 2e-7), for exp2 and reciprocal of every score would keep the unit
// that computes them busy for three times the softmax.
struct CapParams {
  float odd[5];   // tanh(k s) = s (odd[0] + odd[1] s^2 + ...), |s| <= limit
  float limit, exponent;  // else 1 - 2 / (1 + 2^(exponent s))
};
inline CapParams cap_params(float k) {
  constexpr float kLimit = 0.75f, kOdd[5] = {0.999997228f, -0.333230765f, 0.132260917f, -0.0492804494f, 0.012318834f};
  CapParams p{{}, kLimit / k, 2.f * 1.4426950408889634f * k};
  float power = k;
  for (int i = 0; i < 5; ++i, power *= k * k) p.odd[i] = kOdd[i] * power;
  return p;
}
template <int kRegs>
__device__ __forceinline__ void cap_scores(float (&s)[kRegs], const CapParams& p) {
  float top[2] = {fabsf(s[0]), fabsf(s[1])};
#pragma unroll
  for (int i = 2; i < kRegs; ++i) top[i % 2] = fmaxf(top[i % 2], fabsf(s[i]));
  if (__any_sync(~0u, fmaxf(top[0], top[1]) > p.limit)) {
#pragma unroll
    for (int i = 0; i < kRegs; ++i) s[i] = fmaf(-2.f, ptx::reciprocal_approx(1.f + ptx::exp2_approx(s[i] * p.exponent)), 1.f);
  } else {
#pragma unroll
    for (int i = 0; i < kRegs; ++i) {
      const float u = s[i] * s[i];
      s[i] *= fmaf(fmaf(fmaf(fmaf(p.odd[4], u, p.odd[3]), u, p.odd[2]), u, p.odd[1]), u, p.odd[0]);
    }
  }
}

// Per query tile: key tiles x to y (exclusive) hold all that may be seen; each query sees all of z to w.
struct TileRanges {
  const int4* tiles;     // null, or [batch][head][query tile]
  int batches, heads;    // steps; 0: shared
};

struct SegmentParams {
  const int *q, *k;   // null, or [batch][row]; attend iff equal and >= 0
};

struct MaskBits {
  const uint32_t* bits;  // a bit a key; rows of whole 128s
  int64_t batch, head, row;  // in words
};

// A row's bits of a key tile: those of this thread's columns, 8 i + 2 (thread % 4) and the next, come first in each 8.
template <int N>
__device__ __forceinline__ void load_mask_bits(uint32_t (&x)[2][N / 32], const uint32_t* const (&rows)[2], int j) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if constexpr (N % 128 == 0) {
#pragma unroll
      for (int i = 0; i < N / 128; ++i) {
        const uint4 w = __ldg(reinterpret_cast<const uint4*>(rows[r] + j * (N / 32)) + i);
        x[r][4 * i] = w.x, x[r][4 * i + 1] = w.y, x[r][4 * i + 2] = w.z, x[r][4 * i + 3] = w.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < N / 64; ++i) {
        const uint2 w = __ldg(reinterpret_cast<const uint2*>(rows[r] + j * (N / 32)) + i);
        x[r][2 * i] = w.x, x[r][2 * i + 1] = w.y;
      }
    }
  }
}
template <int N, int kRegs>
__device__ __forceinline__ void apply_mask_bits(float (&s)[kRegs], const uint32_t (&x)[2][N / 32]) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int c = 0; c < N / 32; ++c) {
      const uint32_t w = x[r][c] >> 2 * (threadIdx.x % 4);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (!(w >> (8 * i + e) & 1)) s[16 * c + 4 * i + 2 * r + e] = -INFINITY;
    }
}

// Scores of keys of other documents become -inf. s: as SoftmaxState; row: this thread's first.
template <int N, int kRegs>
__device__ __forceinline__ void mask_segments(float (&s)[kRegs], const SegmentParams& p, int batch, int row, int seqlen_q, int seqlen_k, int j) {
  const int* ids_q = p.q + int64_t(batch) * seqlen_q;
  const int* ids_k = p.k + int64_t(batch) * seqlen_k;
  int segment[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) segment[r] = __ldg(ids_q + min(row + 8 * r, seqlen_q - 1));
  const int column0 = j * N + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < N / 8; ++i)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int id = __ldg(ids_k + min(column0 + 8 * i + e, seqlen_k - 1));
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (id != segment[r] || id < 0) s[4 * i + 2 * r + e] = -INFINITY;
    }
}

// One warpgroup's view of one output tile. Columns of this thread: 8 i + 2 (thread % 4) and the next, of rows `row` and row + 8.
template <class Element, int N>
struct Scores {
  const ScoreParams& p;
  uint32_t bias[N / 8][2];  // of the coming key tile, two columns a word
  const char *bias_rows[2], *mask_rows[2];
  int seqlen_k;

  __device__ __forceinline__ explicit Scores(const ScoreParams& p) : p(p) {}

  __device__ __forceinline__ void begin(int batch, int head, int first_row, int row, int seqlen_q, int seqlen_k_) {
    seqlen_k = seqlen_k_;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t i = min(first_row + row + 8 * r, seqlen_q - 1);
      if (p.bias) bias_rows[r] = static_cast<const char*>(p.bias) + 2 * (batch * p.bias_batch + head * p.bias_head + i * p.bias_row);
      if (p.mask) mask_rows[r] = reinterpret_cast<const char*>(p.mask) + (batch * p.mask_batch + head * p.mask_head + i * p.mask_row);
    }
  }

  // Early, for the latency: the bias of key tile j.
  __device__ __forceinline__ void prefetch(int j) {
    if (!p.bias) return;
    const int column0 = j * N + 2 * (threadIdx.x % 4);
    const bool whole = (j + 1) * N <= seqlen_k;
#pragma unroll
    for (int i = 0; i < N / 8; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int column = column0 + 8 * i;
        const char* at = bias_rows[r] + 2 * int64_t(column);
        if (whole || column + 1 < seqlen_k)
          bias[i][r] = __ldg(reinterpret_cast<const uint32_t*>(at));
        else
          bias[i][r] = column < seqlen_k ? __ldg(reinterpret_cast<const uint16_t*>(at)) : 0;
      }
  }

  __device__ __forceinline__ float cap(float x) const {  // softcap * tanh(x / softcap) by one exp2
    const float e = ptx::exp2_approx(x * (2.f * 1.4426950408889634f / p.softcap));
    return p.softcap - 2.f * p.softcap * ptx::reciprocal_approx(1.f + e);
  }

  template <int kRegs>
  __device__ __forceinline__ void apply(float (&s)[kRegs], int j) const {
    const int column0 = j * N + 2 * (threadIdx.x % 4);
    if (p.bias) {
#pragma unroll
      for (int i = 0; i < N / 8; ++i)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float low, high;
          ptx::unpack<Element>(bias[i][r], low, high);
          s[4 * i + 2 * r] = fmaf(s[4 * i + 2 * r], p.scale, low);
          s[4 * i + 2 * r + 1] = fmaf(s[4 * i + 2 * r + 1], p.scale, high);
        }
    } else {
#pragma unroll
      for (int i = 0; i < kRegs; ++i) s[i] *= p.scale;
    }
    if (p.softcap > 0.f) {
#pragma unroll
      for (int i = 0; i < kRegs; ++i) s[i] = cap(s[i]);
    }
    if (p.mask) {
#pragma unroll
      for (int i = 0; i < N / 8; ++i)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int column = column0 + 8 * i;
          const char* at = mask_rows[r] + column;
          uint32_t two = 0;
          if (column + 1 < seqlen_k)
            two = __ldg(reinterpret_cast<const uint16_t*>(at));
          else if (column < seqlen_k)
            two = __ldg(reinterpret_cast<const uint8_t*>(at));
          if (!(two & 0xff)) s[4 * i + 2 * r] = -INFINITY;
          if (!(two & 0xff00)) s[4 * i + 2 * r + 1] = -INFINITY;
        }
    }
  }
};

struct NoScores {
  __device__ explicit NoScores(const ScoreParams&) {}
};
