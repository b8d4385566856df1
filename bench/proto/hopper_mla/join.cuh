// Joins the partial results of a split request, in the kernel: whoever computed one of its n parts waits for the others and joins every
// n-th row, for its half of the columns. o = sum_i w_i o_i, w_i = 2^(lse_i - lse), in the order of the parts: the bits do not depend on
// who came last. All CTAs of the grid must be resident together (one an SM, at most as many as SMs).
// The counter goes to n as parts arrive, on to 2 n as their joiners leave, and the last one clears it for the next launch.
#pragma once
#include "traits.cuh"

template <class T>
__device__ __forceinline__ void join_request(SharedStorage<T>& sm, const Segments& seg, int m_block, int half, int r) {
    const Params& p = seg.p;
    const int mine = seg.slot(r);
    if (mine < 0) return;
    const int t = threadIdx.x & 127, lane = t & 31, warp = t >> 5;
    const int first = __ldg(p.split_start + r), n = __ldg(p.split_start + r + 1) - first, share = mine - first;
    const int rows = seg.rows(), row_base = m_block * T::kM, valid = min(T::kM, rows - row_base);
    const int my_rows = share < valid ? (valid - share + n - 1) / n : 0;   // rows share, share + n, ...
    int* arrived = p.arrived + (r * gridDim.x + m_block) * 2 + half;
    // the latents' slots are free now: this half's first box takes the weights [my_rows][n], at most 64 + n of them
    float* weight = reinterpret_cast<float*>(sm.latent[0][half * T::kHalfBoxes]);
    if (t == 0) ptx::wait_at_least(arrived, n);
    ptx::named_sync(2 + half, 128);
#pragma unroll 1
    for (int i = warp; i < my_rows; i += 4) {
        const int row = row_base + share + i * n;
        const float* lse = p.lse_split + ((int64_t)half * p.slots + first) * rows + row;
        float high = -INFINITY, total = 0.f;
        for (int s = lane; s < n; s += 32) high = fmaxf(high, __ldcg(lse + (int64_t)s * rows));
        for (int d = 16; d; d /= 2) high = fmaxf(high, __shfl_xor_sync(~0u, high, d));
        const float sub = high == -INFINITY ? 0.f : high;
        for (int s = lane; s < n; s += 32) {
            const float w = exp2f(__ldcg(lse + (int64_t)s * rows) - sub);
            weight[i * n + s] = w, total += w;
        }
        for (int d = 16; d; d /= 2) total += __shfl_xor_sync(~0u, total, d);
        const float inv = total == 0.f ? 0.f : 1.f / total;   // a NaN stays
        for (int s = lane; s < n; s += 32) weight[i * n + s] *= inv;
        if (half == 0 && lane == 0)
            p.lse[((int64_t)r * p.heads + row % p.heads) * p.seqlen_q + row / p.heads] = (sub + log2f(total)) * 0.69314718056f;
    }
    ptx::named_sync(2 + half, 128);
    // four rows and four columns a thread at a time
    constexpr int kColumns = T::kHalfBoxes * 16, kStep = 128 / kColumns;   // groups of four columns; rows side by side
    const int col = half * T::kHalfBoxes * 64 + t % kColumns * 4;
    if (col < p.latent && t / kColumns < kStep) {
#pragma unroll 1
        for (int i = t / kColumns; i < my_rows; i += 4 * kStep) {
            float4 acc[4] = {};
            for (int s = 0; s < n; ++s) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const int k = min(i + j * kStep, my_rows - 1);
                    const float w = weight[k * n + s];
                    const float4 v = __ldcg(reinterpret_cast<const float4*>(
                        p.out_split + ((int64_t)(first + s) * rows + row_base + share + k * n) * p.latent + col));
                    if (w != 0.f) acc[j].x += w * v.x, acc[j].y += w * v.y, acc[j].z += w * v.z, acc[j].w += w * v.w;
                }
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int k = i + j * kStep;
                if (k >= my_rows) break;
                using E = typename T::Element;
                *reinterpret_cast<uint2*>((E*)p.out + ((int64_t)r * rows + row_base + share + k * n) * p.latent + col) =
                    make_uint2(ptx::pack(E{}, acc[j].x, acc[j].y), ptx::pack(E{}, acc[j].z, acc[j].w));
            }
        }
    }
    ptx::named_sync(2 + half, 128);
    if (t == 0 && ptx::add_release(arrived, 1) == 2 * n - 1) *arrived = 0;
}

template <class T>
__device__ __forceinline__ void join(SharedStorage<T>& sm, const Segments& seg, int m_block, int half) {
    const int r0 = seg.part.r0, r1 = seg.part.r1;
    if (r0 > r1) return;
    join_request<T>(sm, seg, m_block, half, r0);
    if (r1 > r0) join_request<T>(sm, seg, m_block, half, r1);
}
