// What the kernel is given.
#pragma once

#include <cuda.h>

#include "cuda/forward/sm90/rows.cuh"
#include "cuda/forward/sm90/schedule.cuh"
#include "cuda/forward/sm90/scores.cuh"
#include "cuda/forward/sm90/work.hpp"

namespace attile::cuda::sm90 {

struct Params {
  // {dims, rows, a, b}, see RowOrigin; boxes of 128 bytes of dims. q and out_map: {dims, heads of a row's, rows, a, b}; out_map: boxes of 64 rows.
  CUtensorMap q, k, v, out_map;
  CUtensorMap bias;  // kBias: {keys, rows, heads or 1, batch or 1}
  EndingSteps q_steps, v_steps, out_steps;  // keys past the end are masked: theirs may be anything
  int bias_heads, bias_batches;             // 1: the bias has heads, batches; 0: they share it
  char* out;
  int64_t out_batch, out_row, out_head;  // in bytes
  bool out_by_tma, out_aligned;          // every row begins on 16 bytes
  int head_dim_v;
  float* lse;  // null: not wanted
  int64_t lse_batch, lse_row, lse_head;
  int seqlen_q, seqlen_k;
  RowPacking packing;
  int group;  // heads of the tiles' that share a key head
  float scale_log2;
  uint32_t zero;  // 0; see SoftmaxState::find_max
  TileOrder order;
  unsigned* counter;  // 0
  // E4m3: what q, k and v are to be multiplied by, [batch][heads_k]; or null: q_scale and k_scale are in scale_log2, v's is v_factor
  const float *q_scale, *k_scale, *v_scale;
  int64_t q_scale_batch, q_scale_head, k_scale_batch, k_scale_head, v_scale_batch, v_scale_head;
  float v_factor;
  // kBand and up
  Lengths q_lengths, k_lengths;
  int sequences;
  int window_left, window_right;  // Band::kUnlimited: none
  bool bottom_right;
  const float* sinks;  // natural log of the sum of each head's sink terms; or null
  int64_t sink_step;
  TileRanges ranges;       // kSegments, kMask, kScores
  SegmentParams segments;  // kSegments, kScores
  MaskBits mask;           // kMask, kScores
  CapParams cap;           // kCap; then scale_log2 = softcap * log2(e); kScores
  ScoreParams scores;      // kBias, kScores; then scale_log2 = log2(e), the rest of the scale is in here
};

template <class T>
__device__ inline int tile_positions(const Params& p) {
  return T::kPacks ? p.packing.positions : T::kTileM;
}

template <class T>
__device__ inline Band band(const Params& p, int seqlen_q, int seqlen_k) {
  if (T::kKind == Kind::kFull) return {seqlen_k, -Band::kUnlimited, Band::kUnlimited};
  if (T::kKind == Kind::kCausal) return {seqlen_k, -Band::kUnlimited, seqlen_k - seqlen_q};
  const int shift = p.bottom_right ? seqlen_k - seqlen_q : 0;
  return {seqlen_k, p.window_left == Band::kUnlimited ? -Band::kUnlimited : shift - p.window_left,
          p.window_right == Band::kUnlimited ? Band::kUnlimited : shift + p.window_right};
}

}  // namespace attile::cuda::sm90
