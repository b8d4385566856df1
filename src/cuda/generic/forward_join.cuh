// The splits of a block's keys, joined: every split left sum_j exp(s_j - max) v_j, its maximum (in base 2) and its sum, in
// float32.
//
//   max = max_s max_s;  out = sum_s w_s out_s / sum_s w_s sum_s,  w_s = 2^(max_s - max)
#pragma once

#include "cuda/generic/softmax.cuh"

namespace attile::cuda::generic {

inline constexpr int kJoinRows = 4, kJoinThreads = 32 * kJoinRows;  // of a block: a warp has a row

// p: of the kernel that wrote the parts, with splits and column_parts 1.
template <class Element, int kTileM>
__global__ void __launch_bounds__(kJoinThreads) join_kernel(const __grid_constant__ ForwardParams p, int splits) {
  constexpr int kShares = kTileM / kJoinRows;
  const Work w = find_work<kTileM>(p, blockIdx.x / kShares);
  const int lane = threadIdx.x % 32, row = blockIdx.x % kShares * kJoinRows + threadIdx.x / 32;
  if (w.clear >= 0 || row >= w.stored) return;
  const int64_t part_size = static_cast<int64_t>(kTileM) * (p.head_dim_v + 2);
  const float* parts = p.parts + static_cast<int64_t>(w.unit) * splits * part_size;
  const bool attends = row < w.count;
  const float* maxima = parts + kTileM * p.head_dim_v + row;
  float max = -INFINITY, sum = 0.f;
  if (attends) {
#pragma unroll 8
    for (int s = 0; s < splits; ++s) max = fmaxf(max, maxima[s * part_size]);
#pragma unroll 8
    for (int s = 0; s < splits; ++s) {
      const float own = maxima[s * part_size];
      sum += maxima[s * part_size + kTileM] * (own == -INFINITY ? 1.f : ptx::exp2_approx(own - max));
    }
  }
  const int attended = attends && sum != 0.f ? splits : 0;
  const float scale = final_factor(p, sum);
  const int position = (w.first + row) / p.group, head = w.head_k * p.group + (w.first + row) - position * p.group;
  char* out = p.out.data + w.q_batch * p.out.batch + (w.q_first + position) * p.out.row + head * p.out.head;
  for (int column = 2 * lane; column < p.head_dim_v; column += 64) {
    const bool two = column + 1 < p.head_dim_v;
    float x = 0.f, y = 0.f;
#pragma unroll 8
    for (int s = 0; s < attended; ++s) {
      const float own = maxima[s * part_size], weight = own == -INFINITY ? 1.f : ptx::exp2_approx(own - max);
      const float* from = parts + s * part_size + row * p.head_dim_v + column;
      x += weight * from[0];
      if (two) y += weight * from[1];
    }
    store_pair<Element>(out + column * Element::kBytes, x * scale, y * scale, two);
  }
  if (p.lse && lane == 0)
    p.lse[w.q_batch * p.lse_batch + head * p.lse_head + (w.q_first + position) * p.lse_row] = attends ? final_lse(max, sum) : -INFINITY;
}

}  // namespace attile::cuda::generic
