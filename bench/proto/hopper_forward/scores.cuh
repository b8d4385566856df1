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
  const int *segments_q, *segments_k;  // null, or [batch][row]; attend iff equal and >= 0
  const int2* segment_ranges_q;        // [batch][ceil(seqlen_q / 64)]: smallest and largest id of these rows
  const int2* segment_ranges_k;        // [batch][ceil(seqlen_k / kTileN)]
  const int2* segment_tiles;           // [batch][query tile]: key tiles from the first to the last that share an id's range
};

// One warpgroup's view of one output tile. Columns of this thread: 8 i + 2 (thread % 4) and the next, of rows `row` and row + 8.
template <class Element, int N>
struct Scores {
  const ScoreParams& p;
  uint32_t bias[N / 8][2];  // of the coming key tile, two columns a word
  const char *bias_rows[2], *mask_rows[2];
  const int* segments_k;
  const int2* ranges_k;
  int seqlen_k, segment[2];
  int2 range_q;

  __device__ __forceinline__ explicit Scores(const ScoreParams& p) : p(p) {}

  __device__ __forceinline__ void begin(int batch, int head, int first_row, int row, int seqlen_q, int seqlen_k_) {
    seqlen_k = seqlen_k_;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t i = min(first_row + row + 8 * r, seqlen_q - 1);
      if (p.bias) bias_rows[r] = static_cast<const char*>(p.bias) + 2 * (batch * p.bias_batch + head * p.bias_head + i * p.bias_row);
      if (p.mask) mask_rows[r] = reinterpret_cast<const char*>(p.mask) + (batch * p.mask_batch + head * p.mask_head + i * p.mask_row);
      if (p.segments_q) segment[r] = p.segments_q[int64_t(batch) * seqlen_q + i];
    }
    if (p.segments_q) {
      segments_k = p.segments_k + int64_t(batch) * seqlen_k;
      range_q = p.segment_ranges_q[int64_t(batch) * ((seqlen_q + 63) / 64) + min(first_row, seqlen_q - 1) / 64];
      ranges_k = p.segment_ranges_k + int64_t(batch) * ((seqlen_k + N - 1) / N);
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
    if (p.segments_q) {
      const int2 range = __ldg(ranges_k + j);
      // One document throughout: nothing to test.
      if (range.x == range.y && range_q.x == range_q.y && range.x == range_q.x && range.x >= 0) return;
#pragma unroll
      for (int i = 0; i < N / 8; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = min(column0 + 8 * i + e, seqlen_k - 1);
          const int id = __ldg(segments_k + column);
#pragma unroll
          for (int r = 0; r < 2; ++r)
            if (id != segment[r] || id < 0) s[4 * i + 2 * r + e] = -INFINITY;
        }
    }
  }
};

struct NoScores {
  __device__ explicit NoScores(const ScoreParams&) {}
};

#ifdef __CUDACC__
// The ranges that ScoreParams wants; a few microseconds before the main kernel.
__global__ inline void segment_ranges_kernel(const int* segments, int seqlen, int rows, int2* ranges) {  // a block a (tile, batch)
  const int* ids = segments + int64_t(blockIdx.y) * seqlen;
  int low = INT32_MAX, high = INT32_MIN;
  for (int i = blockIdx.x * rows + threadIdx.x; i < min(seqlen, static_cast<int>(blockIdx.x + 1) * rows); i += 32)
    low = min(low, ids[i]), high = max(high, ids[i]);
  low = __reduce_min_sync(~0u, low), high = __reduce_max_sync(~0u, high);
  if (threadIdx.x == 0) ranges[blockIdx.y * gridDim.x + blockIdx.x] = {low, high};
}

__global__ inline void segment_tiles_kernel(const int2* ranges_q, int count_q, int per_tile, const int2* ranges_k, int count_k,
                                            int2* tiles) {  // a warp a (query tile, batch)
  int low = INT32_MAX, high = INT32_MIN;
  for (int i = blockIdx.x * per_tile; i < min(count_q, static_cast<int>(blockIdx.x + 1) * per_tile); ++i) {
    const int2 q = ranges_q[blockIdx.y * count_q + i];
    low = min(low, q.x), high = max(high, q.y);
  }
  int begin = INT32_MAX, end = 0;
  for (int j = threadIdx.x; j < count_k; j += 32) {
    const int2 k = ranges_k[blockIdx.y * count_k + j];
    if (k.x <= high && k.y >= low && k.y >= 0 && high >= 0) begin = min(begin, j), end = max(end, j + 1);
  }
  begin = __reduce_min_sync(~0u, begin), end = __reduce_max_sync(~0u, end);
  if (threadIdx.x == 0) tiles[blockIdx.y * gridDim.x + blockIdx.x] = {begin, end};
}
#endif
