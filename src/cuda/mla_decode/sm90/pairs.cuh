// A request whose two parts are the two blocks of a cluster: each joins half of the columns, the first one left's, from its own registers and
// what the other's warps write into its shared memory (Landing). No counters, nothing through device memory, no second read.
#pragma once

#include "cuda/mla_decode/sm90/output_rows.cuh"

namespace attile::cuda::mla_sm90 {

// Of one warp's rows: true where they are whole now, with 1 / sum and lse.
template <class T>
__device__ __forceinline__ bool join_pair(Landing<T>& landing, int half, bool live, Output<T>& out, float (&inv)[2], float (&lse)[2]) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, rank = blockIdx.y % 2;
  const uint32_t bar = ptx::shared_address(&landing.full[warp]), mine = ptx::shared_address(&landing.rows[warp][0][lane]);
  constexpr int kStep = 32 * 16;
  if (half != rank) {
    if (!live) return false;
    const uint32_t to = cluster_address(mine, rank ^ 1), other = cluster_address(bar, rank ^ 1);
#pragma unroll
    for (int i = 0; i < Output<T>::kCount; i += 4)
      store_cluster(to + i / 4 * kStep, other, out.o[i], out.o[i + 1], out.o[i + 2], out.o[i + 3]);
    store_cluster(to + Output<T>::kCount / 4 * kStep, other, lse[0], lse[1], inv[0], inv[1]);
    return false;
  }
  if (!live) return true;
  if (lane == 0) ptx::mbarrier_arrive_expect(bar, sizeof landing.rows[warp]);
  mbarrier_wait_cluster(bar, 0);
  const float4 last = landing.rows[warp][Output<T>::kCount / 4][lane];
  const float lse_there[2] = {last.x, last.y}, inv_there[2] = {last.z, last.w};
  float here[2], there[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float high = fmaxf(lse[e], lse_there[e]), sub = high == -INFINITY ? 0.f : high;
    const float a = exp2f(lse[e] - sub), b = exp2f(lse_there[e] - sub), total = a + b,
                part = total == 0.f ? 0.f : 1.f / total;  // a NaN stays
    here[e] = a * part * inv[e], there[e] = b * part * inv_there[e];
    inv[e] = 1.f, lse[e] = sub + log2f(total);
  }
#pragma unroll
  for (int i = 0; i < Output<T>::kCount; i += 4) {
    const float4 x = landing.rows[warp][i / 4][lane];
    out.o[i] = out.o[i] * here[0] + x.x * there[0], out.o[i + 1] = out.o[i + 1] * here[0] + x.y * there[0];
    out.o[i + 2] = out.o[i + 2] * here[1] + x.z * there[1], out.o[i + 3] = out.o[i + 3] * here[1] + x.w * there[1];
  }
  return true;
}

}  // namespace attile::cuda::mla_sm90
