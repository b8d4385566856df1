// The score warpgroup: S = Q K^T, softmax, P to shared memory. It is the critical path where tensor cores are the limit.
//
// A block's chain: S(n) | max, exp2, P(n) to shared memory | S(n+1) ...; the other warpgroups' O += P(n) V shares the tensor cores with it. Where
// bytes are the limit P(n) is published at once; where products are, when most of S(n+1) is issued (Traits::kPublishAt): then O(n) runs under
// softmax(n+1). docs/hopper-mla.md has the figures.
//
// Rope of heads (kHeadRope): kpe[t] is the row of all heads' rope keys, and Q's rope part is block diagonal: row h is zero but for its own
// 16 columns. These A fragments are four registers and a select; nothing is stored.
#pragma once

#include "cuda/mla_decode/sm90/query_scale.cuh"
#include "cuda/mla_decode/sm90/traits.cuh"

namespace attile::cuda::mla_sm90 {

template <class T>
struct Query {  // A fragments: registers 0, 1: rows row0, row0 + 8 of columns 2 * (lane % 4) + {0, 1}; 2, 3: the same 8 columns later
  uint32_t latent[T::kRegisterTiles * 4][4];
  uint32_t rope[4];  // kHeadRope: the row's own 16 columns
};

// Takes the queries out of the ring.
template <class T>
__device__ __forceinline__ void take_queries(SharedStorage<T>& sm, const Segments& seg, int r, uint32_t& n, Query<T>& q) {
  const Params& p = seg.p;
  const int t = threadIdx.x & 127, lane = t & 31, warp = t >> 5;
  const int entries = seg.q_entries(r);
#pragma unroll
  for (int e = 0; e < T::kQEntries; ++e) {
    if (e >= entries) break;
    // Of tile i.
    const auto latent = [&](int i) -> uint8_t* { return sm.half_of(n, i / T::kHalfBoxes)[i % T::kHalfBoxes]; };
    sm.pipe.wait_latent(n, 0), sm.pipe.wait_latent(n, 1);
    sm.pipe.wait_rope(n);
    __syncwarp();
    if (warp * 16 / T::kN == e || (e == 0 && warp * 16 / T::kN >= entries)) {  // rows past the last take any: nothing reads them
      const int row = (warp * 16 + (lane & 15)) % T::kN;
#pragma unroll
      for (int k = 0; k < T::kRegisterTiles * 4; ++k)
        ptx::ldmatrix_x4(q.latent[k], ptx::shared_address(latent(k / 4)) + row * 128 + (((k % 4 * 2 + lane / 16) ^ (row & 7)) << 4));
      if constexpr (T::kHeadRope)
        ptx::ldmatrix_x4(q.rope, ptx::shared_address(sm.rope[sm.pipe.rope_place(n)][0]) + row * 128 + ((lane / 16 ^ (row & 7)) << 4));
    }
    // The other tiles, rows e * kN..; the layout is the same.
    ptx::named_barrier_sync(1, 128);  // the last request's S is done
    if constexpr (T::kNarrow) {
      static_assert(T::kLatentSharedTiles == 1 && T::kQEntries == 1);
      const int row = warp * 16 + (lane & 15), row0 = warp * 16 + lane / 4;
      const auto at = [&](int k) { return row * 128 + (((k * 2 + lane / 16) ^ (row & 7)) << 4); };
      uint32_t last[4][4];
      float back0, back1;
#pragma unroll
      for (int k = 0; k < 4; ++k) ptx::ldmatrix_x4(last[k], ptx::shared_address(latent(T::kRegisterTiles)) + at(k));
      scale_query(q.latent, last, p.ckv_scale, back0, back1);
#pragma unroll
      for (int k = 0; k < 4; ++k) ptx::stmatrix_x4(ptx::shared_address(sm.q[0]) + at(k), last[k][0], last[k][1], last[k][2], last[k][3]);
      if ((lane & 3) == 0) sm.q_scale.back[row0] = back0, sm.q_scale.back[row0 + 8] = back1;
      __syncwarp();
    }
#pragma unroll
    for (int i = T::kNarrow ? T::kLatentSharedTiles : 0; i < T::kSharedTiles; ++i) {
      const uint8_t* from =
          i < T::kLatentSharedTiles ? latent(T::kRegisterTiles + i) : sm.rope[sm.pipe.rope_place(n)][i - T::kLatentSharedTiles];
#pragma unroll
      for (int b = 0; b < T::kBoxBytes; b += 128 * 16)
        *reinterpret_cast<int4*>(&sm.q[i][e * T::kBoxBytes + b + t * 16]) = *reinterpret_cast<const int4*>(from + b + t * 16);
    }
    sm.pipe.arrive_s(n), sm.pipe.publish(n), ++n;  // every barrier flips once an entry
  }
  ptx::named_barrier_sync(1, 128);
}

// What is not linear in q.k, and scales that are not positive: for the maximum is taken of the scores before scale_log2.
template <int n>
__device__ __forceinline__ void reshape_scores(float (&s)[n], const Params& p) {
  if (p.softcap > 0) {
    const float to_exponent = p.raw_scale / p.softcap * 2.88539008f;  // tanh(x) = 1 - 2 / (1 + 2^(2 x log2 e))
#pragma unroll
    for (int i = 0; i < n; ++i) s[i] = p.softcap - __fdividef(2 * p.softcap, 1 + ptx::exp2_approx(s[i] * to_exponent));
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i) s[i] *= p.raw_scale;
  }
}

template <class T>
__device__ __forceinline__ void score(SharedStorage<T>& sm, const Segments& seg) {
  using E = typename T::Element;
  const Params& p = seg.p;
  const int t = threadIdx.x & 127, lane = t & 31, warp = t >> 5;
  const int row0 = warp * 16 + lane / 4;  // and row0 + 8
  const int r0 = seg.m_block * T::kM + row0, r1 = r0 + 8;
  constexpr bool kLate = T::kPublishAt >= 0;  // P is published
  uint32_t n = 0;  // ring entries so far; slots and phases follow from it, for registers are short here
  Query<T> q;
#pragma unroll 1
  for (int r = seg.part.r0; r <= seg.part.r1; ++r) {
    int left = seg.count(r);
    if (left <= 0) continue;
    take_queries<T>(sm, seg, r, n, q);
    float max0 = -INFINITY, max1 = -INFINITY, sum0 = 0.f, sum1 = 0.f;
    const int masked = seg.masked(r);  // blocks that need a mask are this part's last ones: left <= masked
    bool owing = false;                // P(n - 1) is not published yet
    bool ready = false;                // block n's first half is known to be there, where P is published late
    uint32_t place = n % T::kLatentStages;  // block n's, likewise: a division would stand in S's way

#pragma unroll 1
    for (; left > 0; --left, ++n) {
      // ---- S = Q K^T
      if (T::kOwnPlaces && n == 0) __builtin_unreachable();  // queries come first
      const int slot = sm.pipe.slot(n);
      if (owing && !ready && !sm.pipe.latent_ready(n)) {
        sm.pipe.publish(n - 1);
        owing = false;
      }
      float s[T::kAccS];
      const uint64_t left_keys = kLate ? keys_descriptor(ptx::shared_address(sm.latent)) + place * (T::kLatentBytes >> 4)
                                       : keys_descriptor(ptx::shared_address(sm.half_of(n, 0)));
      const uint64_t right_keys =
          sm.pipe.kEven ? left_keys + T::kHalfBoxes * (T::kBoxBytes >> 4) : keys_descriptor(ptx::shared_address(sm.half_of(n, 1)));
      const uint64_t rd = keys_descriptor(ptx::shared_address(sm.rope[sm.pipe.rope_place(n)]));
      const uint64_t qd = keys_descriptor(ptx::shared_address(sm.q[0]));
      auto box = [](int k) { return uint64_t((k / 4) * (T::kBoxBytes >> 4) + (k % 4) * 2); };
      auto product = [&]<class Of>(Of, int k, uint64_t b) {  // k counts from the first tile of Q in shared memory
        ptx::wgmma_ss<Of, 0>(s, qd + (k / 4) * (T::kM * 128 >> 4) + (k % 4) * 2, b, 1);
      };
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half == 1 || !ready) sm.pipe.wait_latent(n, half);
        __syncwarp();
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < T::kHalfBoxes * 4; ++k) {
          const int at = half * T::kHalfBoxes * 4 + k;
          const uint64_t keys = (half ? right_keys : left_keys) + box(k);
          if (at == T::kPublishAt) {
            if (owing) sm.pipe.publish(n - 1);
            __syncwarp();
            ptx::wgmma_fence();
          }
          if (at < T::kRegisterTiles * 4)
            ptx::wgmma_rs<typename T::Wide, 0>(s, q.latent[at], keys, at > 0);  // issue keeps pace with execution
          else
            product(typename T::Wide{}, at - T::kRegisterTiles * 4, keys);
        }
      }
      ptx::wgmma_commit();
      if constexpr (T::kNarrow) {
        ptx::wgmma_wait<0>();
        ptx::pin(s);
        const float back[2] = {sm.q_scale.back[row0], sm.q_scale.back[row0 + 8]};
#pragma unroll
        for (int i = 0; i < T::kAccS; ++i) s[i] *= back[i / 2 % 2];
      }
      sm.pipe.wait_rope(n);
      __syncwarp();
      ptx::wgmma_fence();
      if constexpr (T::kHeadRope) {
        // Block-diagonal rope: k-step h holds head h's 16 columns. A loop: unrolled, all fragments would live at once.
        const int head0 = r0 % p.heads, head1 = r1 % p.heads;
        constexpr int kBoxes = 2;  // at a time
#pragma unroll 1
        for (int c = 0; c < T::kRopeBoxes; c += kBoxes) {
          uint32_t a[kBoxes * 4][4];
#pragma unroll
          for (int h = 0; h < kBoxes * 4; ++h) {
            const int head = c * 4 + h;
            const bool own0 = head0 == head, own1 = head1 == head;
            a[h][0] = own0 ? q.rope[0] : 0, a[h][1] = own1 ? q.rope[1] : 0;
            a[h][2] = own0 ? q.rope[2] : 0, a[h][3] = own1 ? q.rope[3] : 0;
          }
          ptx::wgmma_fence();
#pragma unroll
          for (int h = 0; h < kBoxes * 4; ++h) ptx::wgmma_rs<E, 0>(s, a[h], rd + box(c * 4 + h), 1);
          ptx::wgmma_commit();
          ptx::wgmma_wait<0>();
        }
      } else {
#pragma unroll
        for (int k = 0; k < T::kRopeBoxes * 4; ++k) product(E{}, T::kLatentSharedTiles * 4 + k, rd + box(k));
        ptx::wgmma_commit();
      }
      ptx::wgmma_wait<0>();
      ptx::pin(s);
      sm.pipe.arrive_s(n);
      if (p.reshape) reshape_scores(s, p);

      // ---- mask: the last blocks only. Rows of V past the end may hold NaN: 0 * NaN is NaN, so they are cleared.
      if (left <= masked) {
        const int j = seg.end(r) - left, kv_len = seg.kv_len(r), c0 = j * T::kN + (lane & 3) * 2;
        const int first = kv_len - seg.q_len(r) + 1;
        const int lim0 = p.causal ? first + r0 / p.heads : kv_len;  // keys seen by the two rows
        const int lim1 = p.causal ? first + r1 / p.heads : kv_len;
#pragma unroll
        for (int i = 0; i < T::kN / 8; ++i) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            if (c0 + i * 8 + e >= lim0) s[i * 4 + e] = -INFINITY;
            if (c0 + i * 8 + e >= lim1) s[i * 4 + 2 + e] = -INFINITY;
          }
        }
        const int valid = kv_len - j * T::kN;
        if (valid < T::kN) {
          sm.pipe.wait_s(n);                        // another warp's S still reads what is cleared
          const int bytes = (T::kN - valid) * 128;  // whole rows, so the swizzle does not matter
#pragma unroll 1
          for (int c = 0; c < T::kLatentBoxes; ++c)
            for (int i = t * 16; i < bytes; i += 128 * 16)
              *reinterpret_cast<int4*>(&sm.half_of(n, c / T::kHalfBoxes)[c % T::kHalfBoxes][valid * 128 + i]) = make_int4(0, 0, 0, 0);
        }
      }

      // ---- softmax
      float scale0 = 1.f, scale1 = 1.f;
      {
        float a[2] = {s[0], s[1]}, b[2] = {s[2], s[3]};
#pragma unroll
        for (int i = 1; i < T::kN / 8; ++i) {
          a[0] = fmaxf(a[0], s[i * 4]), a[1] = fmaxf(a[1], s[i * 4 + 1]);
          b[0] = fmaxf(b[0], s[i * 4 + 2]), b[1] = fmaxf(b[1], s[i * 4 + 3]);
        }
        float high0 = fmaxf(a[0], a[1]) * p.scale_log2, high1 = fmaxf(b[0], b[1]) * p.scale_log2;
        if (__any_sync(~0u, high0 > max0 + kLag || high1 > max1 + kLag)) {
          high0 = fmaxf(high0, __shfl_xor_sync(~0u, high0, 1)), high1 = fmaxf(high1, __shfl_xor_sync(~0u, high1, 1));
          high0 = fmaxf(high0, __shfl_xor_sync(~0u, high0, 2)), high1 = fmaxf(high1, __shfl_xor_sync(~0u, high1, 2));
          high0 = fmaxf(max0, high0), high1 = fmaxf(max1, high1);
          scale0 = high0 == -INFINITY ? 1.f : ptx::exp2_approx(max0 - high0),
          scale1 = high1 == -INFINITY ? 1.f : ptx::exp2_approx(max1 - high1);
          max0 = high0, max1 = high1;
          sum0 *= scale0, sum1 *= scale1;
        }
      }
      if constexpr (kLate) {  // asked here, under S's tail, not when the next S is to begin
        ready = sm.pipe.latent_ready(n + 1);
        place = place == T::kLatentStages - 1 ? 0 : place + 1;
      }
      const float sub0 = max0 == -INFINITY ? 0.f : max0, sub1 = max1 == -INFINITY ? 0.f : max1;
      uint32_t pk[T::kN / 8][2];
#pragma unroll
      for (int i = 0; i < T::kN / 8; ++i) {
        const float a = ptx::exp2_approx(fmaf(s[i * 4], p.scale_log2, -sub0));
        const float b = ptx::exp2_approx(fmaf(s[i * 4 + 1], p.scale_log2, -sub0));
        const float c = ptx::exp2_approx(fmaf(s[i * 4 + 2], p.scale_log2, -sub1));
        const float d = ptx::exp2_approx(fmaf(s[i * 4 + 3], p.scale_log2, -sub1));
        sum0 += a + b, sum1 += c + d;
        pk[i][0] = T::Wide::pack(a, b), pk[i][1] = T::Wide::pack(c, d);
      }

      // ---- P, the rescale factors and, with the last block, 1 / sum and lse
      if constexpr (T::kOwnPlaces)
        sm.pipe.wait_p_place(__float_as_uint(sum0) ^ __float_as_uint(sum1));
      else
        sm.pipe.wait_s(n);  // every warp's S has read the rope keys that P overwrites
      {
        // stmatrix: lanes 8m..8m+7 give the rows of matrix m: (rows 0-7, 8-15) x (chunk i, i + 1).
        const int row = warp * 16 + (lane & 15);
        const uint32_t base = ptx::shared_address(sm.rope[sm.pipe.p_place(n)][0]) + row * 128;
#pragma unroll
        for (int i = 0; i < T::kN / 8; i += 2)
          ptx::stmatrix_x4(base + (((i + lane / 16) ^ (row & 7)) << 4), pk[i][0], pk[i][1], pk[i + 1][0], pk[i + 1][1]);
      }
      if ((lane & 3) == 0) sm.scale[slot][row0] = scale0, sm.scale[slot][row0 + 8] = scale1;
      owing = kLate && left > 1;
      if (left == 1) {
        sum0 += __shfl_xor_sync(~0u, sum0, 1), sum1 += __shfl_xor_sync(~0u, sum1, 1);
        sum0 += __shfl_xor_sync(~0u, sum0, 2), sum1 += __shfl_xor_sync(~0u, sum1, 2);
        float inv0 = sum0 > 0.f ? 1.f / sum0 : (sum0 == 0.f ? 0.f : sum0);  // a NaN stays
        float inv1 = sum1 > 0.f ? 1.f / sum1 : (sum1 == 0.f ? 0.f : sum1);
        if constexpr (T::kNarrow) inv0 *= p.ckv_scale, inv1 *= p.ckv_scale;
        if ((lane & 3) == 0) {
          sm.inv_sum[slot][row0] = inv0;
          sm.inv_sum[slot][row0 + 8] = inv1;
          sm.lse[slot][row0] = max0 + log2f(sum0), sm.lse[slot][row0 + 8] = max1 + log2f(sum1);
        }
      }
      if (!owing) sm.pipe.publish(n);
    }
  }
  if constexpr (T::kOwnPlaces) sm.pipe.wait_p_place(0);  // what was arrived for at the beginning
}

}  // namespace attile::cuda::mla_sm90
