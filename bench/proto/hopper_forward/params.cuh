// What the kernel is given (Params), its shared memory by address, and what producer and consumers both ask about a tile.
#pragma once

#include "mask.cuh"
#include "pipeline.cuh"
#include "schedule.cuh"
#include "scores.cuh"
#include "traits.hpp"

#include <cstddef>
#include <type_traits>

struct Strides {
  int64_t batch, row, head;  // in elements; the head dimension is contiguous
};

struct Params {
  // Seen as {D, rows, heads, batch (packed: back), x}, boxes of 64 columns. Packed: rows end where a sequence ends (see RowOrigin); out: boxes of 64 rows.
  CUtensorMap q, k, v, out_map;
  CUtensorMap bias;  // Kind::kBias: {keys, rows, heads or 1, batch or 1, 1}
  int bias_heads, bias_batches;  // 1: the bias has heads, batches; 0: they share it
  void* out;
  float* lse;  // [batch][head][seqlen_q]
  Strides out_strides;
  int64_t lse_batch, lse_head;
  int seqlen_q, seqlen_k, group;
  float scale_log2;
  uint32_t zero;  // 0; see SoftmaxState::find_max
  TileOrder order;
  unsigned* counter;  // 0; exactly count() draws return it to 0
  // fp8: what q, k and v are to be multiplied by, [batch][heads_kv] or (step 0) one number; or null
  const float *q_scale, *k_scale, *v_scale;
  int q_scale_step, k_scale_step, v_scale_step;
  // Kind::kBand and up
  const int *cu_seqlens_q, *cu_seqlens_k;  // null: not packed
  int sequences;
  int window_left, window_right;  // Band::kUnlimited: none
  bool bottom_right;
  const float* sinks;  // [heads_q], natural log of the sum of each head's sink terms; or null
  TileRanges ranges;       // Kind::kSegments, kMask, kScores
  SegmentParams segments;  // Kind::kSegments, kScores
  MaskBits mask;           // Kind::kMask
  CapParams cap;           // Kind::kCap; then scale_log2 = softcap * log2(e)
  // Kind::kBias, kScores; then scale_log2 = log2(e), the rest of the scale is in here
  ScoreParams scores;
};

template <class T>
__device__ inline RowOrigin row_origin(bool packed, int batch, int row0, int length) {
  if (!T::kBand || !packed) return {0, batch, 0};
  return packed_origin(row0, length);
}

template <class T>
struct Addresses {  // of the parts of SharedStorage
  uint32_t base;
  __device__ uint32_t q() const { return base + offsetof(SharedStorage<T>, q); }
  __device__ uint32_t k() const { return base + offsetof(SharedStorage<T>, k); }
  __device__ uint32_t v() const { return base + offsetof(SharedStorage<T>, v); }
  __device__ RingCursor<T::kQStages> q_ring() const {
    return RingCursor<T::kQStages>(base + offsetof(SharedStorage<T>, q_bars));
  }
  __device__ RingCursor<T::kStages> k_ring() const { return RingCursor<T::kStages>(base + offsetof(SharedStorage<T>, k_bars)); }
  __device__ RingCursor<T::kStages> v_ring() const { return RingCursor<T::kStages>(base + offsetof(SharedStorage<T>, v_bars)); }
  __device__ uint32_t bias() const { return base + offsetof(SharedStorage<T>, bias); }
  __device__ RingCursor<T::kBiasStages> bias_ring() const {
    return RingCursor<T::kBiasStages>(base + offsetof(SharedStorage<T>, bias_bars));
  }
  __device__ RingCursor<2> work_ring() const { return RingCursor<2>(base + offsetof(SharedStorage<T>, work_bars)); }
};

template <class T>
__device__ inline Band band(const Params& p, int seqlen_q, int seqlen_k) {
  if (T::kKind == Kind::kFull) return {seqlen_k, -Band::kUnlimited, Band::kUnlimited};
  if (T::kKind == Kind::kCausal) return {seqlen_k, -Band::kUnlimited, seqlen_k - seqlen_q};
  const int shift = p.bottom_right ? seqlen_k - seqlen_q : 0;
  return {seqlen_k, p.window_left == Band::kUnlimited ? -Band::kUnlimited : shift - p.window_left,
          p.window_right == Band::kUnlimited ? Band::kUnlimited : shift + p.window_right};
}
