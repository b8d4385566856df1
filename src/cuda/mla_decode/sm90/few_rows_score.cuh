// The score warpgroup of few_rows.cuh: a warp has S of 16 keys of each block, and all rows.
#pragma once

#include "cuda/mla_decode/sm90/few_rows.cuh"
#include "cuda/mla_decode/sm90/score.cuh"

namespace attile::cuda::mla_sm90::few_rows {

struct Query {  // A fragments; of latents, columns 4 t .. 4 t + 3 where a product has 2 t, 2 t + 1, 2 t + 8, 2 t + 9
  static constexpr int kSteps = Shape::kLatent / 16, kLast = kSteps - 4;
  uint32_t latent[kLast][4], last[4][4], rope[Shape::kRope / 16][4];
  float back0, back1;  // what a row's latent scores are to be multiplied by
  __device__ __forceinline__ const uint32_t (&at(int k) const)[4] { return k < kLast ? latent[k] : last[k - kLast]; }

  __device__ __forceinline__ void take(Storage& sm, float ckv_scale) {
    const int lane = threadIdx.x & 31, t = lane & 3, row = lane / 4;  // and row + 8: the same swizzle
    const uint32_t q = ptx::shared_address(sm.q);
    const auto read = [&](uint32_t (&a)[4], int k) {
      const uint32_t from = q + k / 4 * sizeof(sm.q[0]) + row * 128 + (((k % 4 * 2 + t / 2) ^ row) << 4) + t % 2 * 8;
      a[0] = ptx::load_shared(from), a[2] = ptx::load_shared(from + 4);
      a[1] = ptx::load_shared(from + 8 * 128), a[3] = ptx::load_shared(from + 8 * 128 + 4);
    };
#pragma unroll
    for (int k = 0; k < kLast; ++k) read(latent[k], k);
#pragma unroll
    for (int k = 0; k < 4; ++k) read(last[k], kLast + k);
#pragma unroll
    for (int k = 0; k < Shape::kRope / 16; ++k)
      ptx::ldmatrix_x4(rope[k], q + Shape::kQBoxes * sizeof(sm.q[0]) + (lane & 15) * 128 + (((k * 2 + lane / 16) ^ (lane & 7)) << 4));
    sm.arrive(sm.q_taken);
    scale_query(latent, last, ckv_scale, back0, back1);
  }
};

// S of this warp's 16 keys, two products of eight: s[4 i ..] is of keys 8 i + 2 t and the next, rows lane / 4 and 8 more. Sums of every
// second k-step, so that four chains run side by side.
__device__ __forceinline__ void scores_of(const Block& block, const Query& q, float (&s)[8]) {
  const int lane = threadIdx.x & 31, row = (threadIdx.x >> 5 & 3) * 16 + (lane & 15);
  const uint32_t latent = ptx::shared_address(block.latent) + row * 128, rope = ptx::shared_address(block.rope) + row * 128;
  const auto chunk = [&](int c) { return ((c + lane / 16) ^ (row & 7)) << 4; };
  float even[8] = {}, odd[8] = {}, of_rope[8] = {};
  const auto two_keys = [](float(&c)[8], int i) -> float(&)[4] { return reinterpret_cast<float(&)[4]>(c[i * 4]); };
#pragma unroll
  for (int k = 0; k < Query::kSteps; k += 2) {
    uint32_t x[4];  // (keys 0 .. 7, 8 .. 15) x (16 columns, the next 16)
    ptx::ldmatrix_x4(x, latent + k / 8 * sizeof(block.latent[0]) + chunk(k % 8));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      F16::mma(two_keys(even, i), q.at(k), low_two(x[i]), high_two(x[i]));
      F16::mma(two_keys(odd, i), q.at(k + 1), low_two(x[i + 2]), high_two(x[i + 2]));
    }
  }
#pragma unroll
  for (int k = 0; k < Shape::kRope / 16; ++k) {
    uint32_t x[4];
    ptx::ldmatrix_x4(x, rope + chunk(k * 2));
#pragma unroll
    for (int i = 0; i < 2; ++i) Bf16::mma(two_keys(of_rope, i), q.rope[k], x[i], x[i + 2]);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) s[i] = fmaf(even[i] + odd[i], i / 2 % 2 ? q.back1 : q.back0, of_rope[i]);
}

__device__ __forceinline__ float over_quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float over_quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

inline __device__ void score(Storage& sm, const Segments& seg) {
  const Params& p = seg.p;
  const int t = threadIdx.x & 127, lane = t & 31, warp = t >> 5, row = lane / 4;  // and row + 8
  uint32_t n = 0, requests = 0;
  Query q;
#pragma unroll 1
  for (int r = seg.part.r0; r <= seg.part.r1; ++r) {
    int left = seg.count(r);
    if (left <= 0) continue;
    mbarrier_wait(ptx::shared_address(&sm.q_full), requests++ & 1);
    q.take(sm, p.ckv_scale);
    float max0 = -INFINITY, max1 = -INFINITY, sum0 = 0.f, sum1 = 0.f;
    const int masked = seg.masked(r);  // blocks that need a mask are this part's last ones: left <= masked
#pragma unroll 1
    for (; left > 0; --left, ++n) {
      Block& block = sm.keys[n % Shape::kStages];
      const int place = n % Shape::kPlaces;
      float s[8];
      sm.wait_keys(n);
      scores_of(block, q, s);
      if (p.reshape) reshape_scores(s, p);

      // ---- mask: the last blocks only. Rows of V past the end may hold NaN: 0 * NaN is NaN, so they are cleared, by who has read them.
      if (left <= masked) {
        const int first_key = (seg.end(r) - left) * Shape::kN + warp * 16, kv_len = seg.kv_len(r), c0 = first_key + (lane & 3) * 2;
        const int first = kv_len - seg.q_len(r) + 1;
        const int lim0 = p.causal ? first + row / p.heads : kv_len, lim1 = p.causal ? first + (row + 8) / p.heads : kv_len;
#pragma unroll
        for (int i = 0; i < 8; ++i)
          if (c0 + i / 4 * 8 + i % 2 >= (i / 2 % 2 ? lim1 : lim0)) s[i] = -INFINITY;
        const int valid = max(kv_len - first_key, 0), from = warp * 16 + valid;
        if (valid < 16) {
          __syncwarp();
#pragma unroll 1
          for (int i = lane * 16; i < (16 - valid) * 128; i += 32 * 16)  // whole rows, so the swizzle does not matter
#pragma unroll 1
            for (int c = 0; c < Shape::kBoxes; ++c) *reinterpret_cast<int4*>(&block.latent[c][from * 128 + i]) = make_int4(0, 0, 0, 0);
          ptx::fence_async_proxy();  // TMA writes there next
        }
      }

      // ---- the maximum over all keys of the block; it may lag behind (kLag)
      float scale0 = 1.f, scale1 = 1.f;
      {
        const float own0 = over_quad_max(fmaxf(fmaxf(s[0], s[1]), fmaxf(s[4], s[5])) * p.scale_log2);
        const float own1 = over_quad_max(fmaxf(fmaxf(s[2], s[3]), fmaxf(s[6], s[7])) * p.scale_log2);
        if ((lane & 3) == 0) sm.maxima[place][row][warp] = own0, sm.maxima[place][row + 8][warp] = own1;
        sm.wait_place(n);
        const float4 a = all_of(sm.maxima[place][row]), b = all_of(sm.maxima[place][row + 8]);
        const float high0 = fmaxf(fmaxf(a.x, a.y), fmaxf(a.z, a.w)), high1 = fmaxf(fmaxf(b.x, b.y), fmaxf(b.z, b.w));
        if (high0 > max0 + kLag) scale0 = ptx::exp2_approx(max0 - high0), max0 = high0, sum0 *= scale0;
        if (high1 > max1 + kLag) scale1 = ptx::exp2_approx(max1 - high1), max1 = high1, sum1 *= scale1;
      }
      const float sub0 = max0 == -INFINITY ? 0.f : max0, sub1 = max1 == -INFINITY ? 0.f : max1;
      uint32_t pk[2][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float a = ptx::exp2_approx(fmaf(s[i * 4], p.scale_log2, -sub0));
        const float b = ptx::exp2_approx(fmaf(s[i * 4 + 1], p.scale_log2, -sub0));
        const float c = ptx::exp2_approx(fmaf(s[i * 4 + 2], p.scale_log2, -sub1));
        const float d = ptx::exp2_approx(fmaf(s[i * 4 + 3], p.scale_log2, -sub1));
        sum0 += a + b, sum1 += c + d;
        pk[i][0] = F16::pack(a, b), pk[i][1] = F16::pack(c, d);
      }

      // ---- P, the rescale factors and, with the last block, the maximum and the sums
      const int to_row = lane & 15;
      const uint32_t to = ptx::shared_address(sm.p[place]) + to_row * 128 + (((warp * 2 + lane / 16) ^ (to_row & 7)) << 4);
      ptx::stmatrix_x4(to, pk[0][0], pk[0][1], pk[1][0], pk[1][1]);
      if (warp == 0 && (lane & 3) == 0) sm.scale[place][row] = scale0, sm.scale[place][row + 8] = scale1;
      if (left == 1) {
        const float own0 = over_quad_sum(sum0), own1 = over_quad_sum(sum1);
        if ((lane & 3) == 0) {
          sm.sums[place][row][warp] = own0, sm.sums[place][row + 8][warp] = own1;
          if (warp == 0) sm.high[place][row] = max0, sm.high[place][row + 8] = max1;
        }
      }
      sm.publish(n);
    }
  }
  for (int i = 0; i < Shape::kPlaces; ++i) sm.wait_place(n + i);  // what output says last: no barrier is left half full
}

}  // namespace attile::cuda::mla_sm90::few_rows
