// The score warpgroup: S = Q K^T, softmax, P to shared memory. It is the critical path where tensor cores are the limit.
//
// A block's chain: S(n) | max, exp2, P(n) to shared memory | S(n+1) ...; the other warpgroups' O += P(n) V begins with S(n+1), and the two
// share the tensor cores. Publishing P(n) later, so that O(n) runs under softmax(n+1), should be better and is not: the rope slot that
// P(n) occupies, and the latents, are then loaded anew too late (PUBLISH_AT; docs/hopper-mla.md has the figures).
//
// Rope with heads (kHeadRope): kpe[t] is the row of all heads' rope keys, and Q's rope part is block diagonal: row h is
// zero but for its own 16 columns. These A fragments are four registers and a select; nothing is stored.
#pragma once
#include "loads.cuh"
#include "trace.cuh"
#include "wgmma.cuh"

#ifndef PUBLISH_AT
#define PUBLISH_AT -1
#endif
#ifndef WHOLE
#define WHOLE 0
#endif
constexpr int kPublishAt = PUBLISH_AT;   // P(n) is published when S(n+1) has issued so many of its k-steps; -1: before it begins

template <class T>
struct Query {   // A fragments: registers 0, 1: rows row0, row0 + 8 of columns 2 * (lane % 4) + {0, 1}; 2, 3: the same 8 columns later
    uint32_t latent[T::kRegTiles * 4][4];
    uint32_t rope[4];   // kHeadRope: the row's own 16 columns
};

// takes the queries out of the ring
template <class T>
__device__ __forceinline__ void take_queries(SharedStorage<T>& sm, const Segments& seg, int m_block, int r, uint32_t& n, Query<T>& q) {
    using namespace ptx;
    const Params& p = seg.p;
    const int t = threadIdx.x & 127, lane = t & 31, warp = t >> 5;
    if constexpr (T::kHeadRope) {
        const int r0 = m_block * T::kM + warp * 16 + lane / 4, r1 = r0 + 8, rows = seg.rows();
        using E = typename T::Element;
        const E* c = (const E*)p.q_pe + r * p.q_pe_batch_stride + (int64_t)r0 * p.q_pe_stride + (lane & 3) * 2;
        const E* d = c + 8 * p.q_pe_stride;
        q.rope[0] = r0 < rows ? ldg_b32(c) : 0, q.rope[1] = r1 < rows ? ldg_b32(d) : 0;
        q.rope[2] = r0 < rows ? ldg_b32(c + 8) : 0, q.rope[3] = r1 < rows ? ldg_b32(d + 8) : 0;
    }
    const int entries = seg.q_entries(m_block);
#pragma unroll
    for (int e = 0; e < T::kQEntries; ++e) {
        if (e >= entries) break;
        const int slot = sm.pipe.slot(n);
#pragma unroll 1
        for (int c = 0; c < T::kOutPieces; ++c) sm.pipe.wait_latent(n, 0, c), sm.pipe.wait_latent(n, 1, c);
        sm.pipe.wait_rope(n);
        __syncwarp();
        if (warp * 16 / T::kN == e || (e == 0 && warp * 16 / T::kN >= entries)) {   // rows past the last take any: nothing reads them
            const int row = (warp * 16 + (lane & 15)) % T::kN;
            const uint32_t base = smem_addr(sm.latent[slot]) + row * 128;
#pragma unroll
            for (int k = 0; k < T::kRegTiles * 4; ++k)
                ldmatrix_x4(base + (k / 4) * T::kBoxBytes + (((k % 4 * 2 + lane / 16) ^ (row & 7)) << 4), q.latent[k]);
        }
        // the other tiles, rows e * kN..; the layout is the same
        named_sync(1, 128);   // the last request's S is done
#pragma unroll
        for (int i = 0; i < T::kSmemTiles; ++i) {
            const uint8_t* from = i < T::kLatentSmemTiles ? sm.latent[slot][T::kRegTiles + i] : sm.rope[sm.pipe.rope_slot(n)][i - T::kLatentSmemTiles];
#pragma unroll
            for (int b = 0; b < T::kBoxBytes; b += 128 * 16)
                *reinterpret_cast<int4*>(&sm.q[i][e * T::kBoxBytes + b + t * 16]) = *reinterpret_cast<const int4*>(from + b + t * 16);
        }
        sm.pipe.arrive_s(n), sm.pipe.publish(n), ++n;   // every barrier flips once an entry
    }
    named_sync(1, 128);
}

template <class T>
__device__ __forceinline__ void score(SharedStorage<T>& sm, const Segments& seg, int m_block) {
    using namespace ptx;
    using E = typename T::Element;
    const Params& p = seg.p;
    const int t = threadIdx.x & 127, lane = t & 31, warp = t >> 5;
    const int row0 = warp * 16 + lane / 4;             // and row0 + 8
    const int r0 = m_block * T::kM + row0, r1 = r0 + 8;
    uint32_t n = 0;   // ring entries so far; slots and phases follow from it, for registers are short here
    Query<T> q;
#pragma unroll 1
    for (int r = seg.part.r0; r <= seg.part.r1; ++r) {
        int left = seg.count(r);
        if (left <= 0) continue;
        take_queries<T>(sm, seg, m_block, r, n, q);
        if (r == seg.part.r0) TRACE_TIME(p, 0, 3);
        float max0 = -INFINITY, max1 = -INFINITY, sum0 = 0.f, sum1 = 0.f;
        const int masked = seg.masked(r);   // blocks that need a mask are this part's last ones: left <= masked
        constexpr int kPublish = kPublishAt < T::kLatentBoxes * 4 ? kPublishAt : T::kLatentBoxes * 4 - 1;
        bool owing = false;                 // P(n - 1) is not published yet

#pragma unroll 1
        for (; left > 0; --left, ++n) {
            // ---- S = Q K^T
            const int slot = sm.pipe.slot(n), rope_slot = sm.pipe.rope_slot(n);
            TRACE_AT(p, 0, n, 0);
            if (owing && !sm.pipe.latent_ready(n)) {
                sm.pipe.publish(n - 1);
                owing = false;
            }
            TRACE_AT(p, 0, n, 1);
            float s[T::kAccS];
            const uint64_t kd = desc_k_major(smem_addr(sm.latent[slot]));
            const uint64_t rd = desc_k_major(smem_addr(sm.rope[rope_slot]));
            const uint64_t qd = desc_k_major(smem_addr(sm.q[0]));
            auto box = [](int k) { return uint64_t((k / 4) * (T::kBoxBytes >> 4) + (k % 4) * 2); };
            auto mma_reg = [&](const uint32_t (&a)[4], uint64_t b, int accumulate) {
                if constexpr (T::kN == 64) wgmma_rs_n64(E{}, s, a, b, accumulate);
                else wgmma_rs_n32(E{}, s, a, b, accumulate);
            };
            auto mma_smem = [&](int k, uint64_t b) {   // k counts from the first tile in shared memory
                const uint64_t a = qd + (k / 4) * (T::kM * 128 >> 4) + (k % 4) * 2;
                if constexpr (T::kN == 64) wgmma_ss_n64(E{}, s, a, b, 1);
                else wgmma_ss_n32(E{}, s, a, b, 1);
            };
            constexpr bool kWhole = WHOLE && !T::kHeadRope;
            if constexpr (kWhole) {
#pragma unroll
                for (int i = 0; i < T::kOutPieces * 2; ++i) sm.pipe.wait_latent(n, i & 1, i / 2);
                sm.pipe.wait_rope(n);
                __syncwarp();
                wgmma_fence();
            }
#pragma unroll
            for (int i = 0; i < T::kOutPieces * 2; ++i) {   // pieces as they come: left's first, right's first, left's second ...
                const int half = i & 1, piece = i / 2;
                if constexpr (!kWhole) {
                    sm.pipe.wait_latent(n, half, piece);
                    __syncwarp();
                    wgmma_fence();
                }
#pragma unroll
                for (int k = 0; k < T::kPieceBoxes * 4; ++k) {
                    const int at = (half * T::kHalfBoxes + piece * T::kPieceBoxes) * 4 + k;
                    if (i * T::kPieceBoxes * 4 + k == kPublish && owing) sm.pipe.publish(n - 1);
                    if (at < T::kRegTiles * 4) mma_reg(q.latent[at], kd + box(at), i + k > 0);   // issue keeps pace with execution
                    else mma_smem(at - T::kRegTiles * 4, kd + box(at));
                }
            }
            if constexpr (!kWhole) {
                wgmma_commit();
                sm.pipe.wait_rope(n);
                __syncwarp();
                wgmma_fence();
            }
            if constexpr (T::kHeadRope) {
                // block-diagonal rope: k-step h holds head h's 16 columns. A loop: unrolled, all fragments would live at once.
                const int head0 = r0 % p.heads, head1 = r1 % p.heads;
#pragma unroll 1
                for (int c = 0; c < T::kRopeBoxes; ++c) {
                    uint32_t a[4][4];
#pragma unroll
                    for (int h = 0; h < 4; ++h) {
                        const int head = c * 4 + h;
                        const bool own0 = head0 == head, own1 = head1 == head;
                        a[h][0] = own0 ? q.rope[0] : 0, a[h][1] = own1 ? q.rope[1] : 0;
                        a[h][2] = own0 ? q.rope[2] : 0, a[h][3] = own1 ? q.rope[3] : 0;
                    }
                    wgmma_fence();
#pragma unroll
                    for (int h = 0; h < 4; ++h) mma_reg(a[h], rd + c * (T::kBoxBytes >> 4) + h * 2, 1);
                    wgmma_commit();
                    wgmma_wait<0>();
                }
            } else {
#pragma unroll
                for (int k = 0; k < T::kRopeBoxes * 4; ++k) mma_smem(T::kLatentSmemTiles * 4 + k, rd + box(k));
                wgmma_commit();
            }
            wgmma_wait<0>();
            pin(s);
            sm.pipe.arrive_s(n);
            TRACE_AT(p, 0, n, 2);
            if (n == 1) TRACE_TIME(p, 0, 4);
            // ---- mask: the last blocks only. Rows of V past the end may hold NaN: 0 * NaN is NaN, so they are cleared.
            if (left <= masked) {
                const int j = seg.end(r) - left, kv_len = seg.kv_len(r), c0 = j * T::kN + (lane & 3) * 2;
                const int lim0 = p.causal ? kv_len - p.seqlen_q + r0 / p.heads + 1 : kv_len;   // keys seen by the two rows
                const int lim1 = p.causal ? kv_len - p.seqlen_q + r1 / p.heads + 1 : kv_len;
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
                    sm.pipe.wait_s(n);   // another warp's S still reads what is cleared
                    const int bytes = (T::kN - valid) * 128;   // whole rows, so the swizzle does not matter
#pragma unroll 1
                    for (int c = 0; c < T::kLatentBoxes; ++c)
                        for (int i = t * 16; i < bytes; i += 128 * 16)
                            *reinterpret_cast<int4*>(&sm.latent[slot][c][valid * 128 + i]) = make_int4(0, 0, 0, 0);
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
                    scale0 = high0 == -INFINITY ? 1.f : exp2_approx(max0 - high0), scale1 = high1 == -INFINITY ? 1.f : exp2_approx(max1 - high1);
                    max0 = high0, max1 = high1;
                    sum0 *= scale0, sum1 *= scale1;
                }
            }
            const float sub0 = max0 == -INFINITY ? 0.f : max0, sub1 = max1 == -INFINITY ? 0.f : max1;
            TRACE_AT(p, 0, n, 3);
            uint32_t pk[T::kN / 8][2];
#pragma unroll
            for (int i = 0; i < T::kN / 8; ++i) {
                const float a = exp2_approx(fmaf(s[i * 4], p.scale_log2, -sub0));
                const float b = exp2_approx(fmaf(s[i * 4 + 1], p.scale_log2, -sub0));
                const float c = exp2_approx(fmaf(s[i * 4 + 2], p.scale_log2, -sub1));
                const float d = exp2_approx(fmaf(s[i * 4 + 3], p.scale_log2, -sub1));
                sum0 += a + b, sum1 += c + d;
                pk[i][0] = pack(E{}, a, b), pk[i][1] = pack(E{}, c, d);
            }
            TRACE_AT(p, 0, n, 4);
            // ---- P, the rescale factors and, with the last block, 1 / sum and lse
            sm.pipe.wait_s(n);   // every warp's S has read the rope keys that P overwrites
            {
                // stmatrix: lanes 8m..8m+7 give the rows of matrix m: (rows 0-7, 8-15) x (chunk i, i + 1)
                const int row = warp * 16 + (lane & 15);
                const uint32_t base = smem_addr(sm.rope[rope_slot][0]) + row * 128;
#pragma unroll
                for (int i = 0; i < T::kN / 8; i += 2)
                    stmatrix_x4(base + (((i + lane / 16) ^ (row & 7)) << 4), pk[i][0], pk[i][1], pk[i + 1][0], pk[i + 1][1]);
            }
            if ((lane & 3) == 0) sm.scale[rope_slot][row0] = scale0, sm.scale[rope_slot][row0 + 8] = scale1;
            owing = kPublish >= 0 && left > 1;
            if (left == 1) {
                sum0 += __shfl_xor_sync(~0u, sum0, 1), sum1 += __shfl_xor_sync(~0u, sum1, 1);
                sum0 += __shfl_xor_sync(~0u, sum0, 2), sum1 += __shfl_xor_sync(~0u, sum1, 2);
                if ((lane & 3) == 0) {
                    sm.inv_sum[row0] = sum0 > 0.f ? 1.f / sum0 : (sum0 == 0.f ? 0.f : sum0);   // a NaN stays
                    sm.inv_sum[row0 + 8] = sum1 > 0.f ? 1.f / sum1 : (sum1 == 0.f ? 0.f : sum1);
                    sm.lse[row0] = max0 + log2f(sum0);
                    sm.lse[row0 + 8] = max1 + log2f(sum1);
                }
            }
            if (!owing) sm.pipe.publish(n);
            TRACE_AT(p, 0, n, 5);
        }
    }
}
