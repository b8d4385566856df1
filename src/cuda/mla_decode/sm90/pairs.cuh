// A request whose two parts are the two blocks of a cluster: each joins half of the columns, the first one left's, from its own registers and
// what the other's warps write into its shared memory (Landing). No counters, nothing through device memory, no second read.
#pragma once

#include "cuda/mla_decode/sm90/output_rows.cuh"

namespace attile::cuda::mla_sm90 {

// Of one warp's rows.
template <class T>
class PairJoin {
 public:
  __device__ __forceinline__ explicit PairJoin(Landing<T>& landing) : landing_(landing) {}

  // The half that the other block joins.
  __device__ __forceinline__ void send(bool live, const Output<T>& out, const float (&inv)[2], const float (&lse)[2]) const {
    if (!live) return;
    const uint32_t there = blockIdx.y % 2 ^ 1, to = cluster_address(ptx::shared_address(&landing_.rows[warp_][0][lane_]), there),
                   full = cluster_address(barrier(0), there);
    store_cluster(to + kLast * kStep, full, lse[0], lse[1], inv[0], inv[1]);
#pragma unroll
    for (int i = 0; i < kLast; ++i)
      store_cluster(to + i * kStep, full + i / 8 * 8, out.o[i * 4], out.o[i * 4 + 1], out.o[i * 4 + 2], out.o[i * 4 + 3]);
  }

  // The other half: what both parts weigh. Then inv is 1, and lse the whole request's.
  __device__ __forceinline__ void begin(bool live, float (&inv)[2], float (&lse)[2]) {
    if (!live) return;
    if (lane_ < T::kHalfBoxes) ptx::mbarrier_arrive_expect(barrier(lane_), (8 + (lane_ == 0)) * kStep);
    mbarrier_wait_cluster(barrier(0), 0);
    const float4 last = landing_.rows[warp_][kLast][lane_];
    const float lse_there[2] = {last.x, last.y}, inv_there[2] = {last.z, last.w};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float high = fmaxf(lse[e], lse_there[e]), sub = high == -INFINITY ? 0.f : high;
      const float a = exp2f(lse[e] - sub), b = exp2f(lse_there[e] - sub), total = a + b,
                  part = total == 0.f ? 0.f : 1.f / total;  // a NaN stays
      here_[e] = a * part * inv[e], there_[e] = b * part * inv_there[e];
      inv[e] = 1.f, lse[e] = sub + log2f(total);
    }
  }
  // Columns 64 c.. of it, as they come.
  __device__ __forceinline__ void columns(int c, Output<T>& out) const {
    if (c > 0) mbarrier_wait_cluster(barrier(c), 0);
#pragma unroll
    for (int i = c * 32; i < (c + 1) * 32; i += 4) {
      const float4 x = landing_.rows[warp_][i / 4][lane_];
      out.o[i] = out.o[i] * here_[0] + x.x * there_[0], out.o[i + 1] = out.o[i + 1] * here_[0] + x.y * there_[0];
      out.o[i + 2] = out.o[i + 2] * here_[1] + x.z * there_[1], out.o[i + 3] = out.o[i + 3] * here_[1] + x.w * there_[1];
    }
  }

 private:
  static constexpr int kLast = Output<T>::kCount / 4, kStep = 32 * 16;
  __device__ __forceinline__ uint32_t barrier(int c) const { return ptx::shared_address(&landing_.full[warp_][c]); }

  Landing<T>& landing_;
  int warp_ = threadIdx.x / 32 % 4, lane_ = threadIdx.x % 32;
  float here_[2], there_[2];
};

}  // namespace attile::cuda::mla_sm90
