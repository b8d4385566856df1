// The splits of a block's keys, joined: every split left sum_j exp(s_j - max) v_j, its maximum and its sum, in float32. A warp a row.
//
//   max = max_s max_s;  out = sum_s w_s out_s / sum_s w_s sum_s,  w_s = e^(max_s - max)
#pragma once

#include "cuda/mla_decode/generic/decode_kernel.cuh"

namespace attile::cuda::latent {

inline constexpr int kJoinThreads = 128, kJoinRows = kJoinThreads / 32;

// p: with splits 1. Blocks: [unit][rows of a tile in steps of kJoinRows].
template <class Element, int kTileM>
__global__ void __launch_bounds__(kJoinThreads) mla_decode_join_kernel(const __grid_constant__ DecodeParams p, int splits) {
  constexpr int kSteps = kTileM / kJoinRows;
  const Work w = generic::find_work<kTileM>(p, blockIdx.x / kSteps);
  const int row = blockIdx.x % kSteps * kJoinRows + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (w.clear >= 0 || row >= w.stored) return;
  const int64_t size = generic::part_floats(kTileM, p.head_dim_v);
  const float* parts = p.parts + static_cast<int64_t>(w.unit) * splits * size;
  const float* maxima = parts + kTileM * p.head_dim_v + row;
  const bool attends = row < w.count;
  float max = -INFINITY, sum = 0.f;
  if (attends) {
    for (int s = 0; s < splits; ++s) max = fmaxf(max, maxima[s * size]);
    for (int s = 0; s < splits; ++s) sum += maxima[s * size + kTileM] * exponential(maxima[s * size] - origin_of(max));
  }
  const bool seen = attends && sum != 0.f;
  const int position = (w.first + row) / p.group, head = w.first + row - position * p.group;
  char* out = p.out.data + w.q_batch * p.out.batch + (w.q_first + position) * p.out.row + head * p.out.head;
  for (int column = 2 * lane; column < p.head_dim_v; column += 64) {
    float x = 0.f, y = 0.f;
    for (int s = 0; seen && s < splits; ++s) {
      const float weight = exponential(maxima[s * size] - origin_of(max));
      const float2 from = *reinterpret_cast<const float2*>(parts + s * size + row * p.head_dim_v + column);
      x += weight * from.x;
      y += weight * from.y;
    }
    store_pair<Element>(out + column * Element::kBytes, seen ? x / sum : 0.f, seen ? y / sum : 0.f, true);
  }
  if (p.lse && lane == 0)
    p.lse[w.q_batch * p.lse_batch + head * p.lse_head + (w.q_first + position) * p.lse_row] =
        seen ? (origin_of(max) + logf(sum)) * p.lse_scale : -INFINITY;
}

}  // namespace attile::cuda::latent
