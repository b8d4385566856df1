// Joins the partial results of a split request, in the kernel: whoever computed one of its n parts waits for the others and joins every
// n-th row, for its half of the columns. o = sum_i w_i o_i, w_i = 2^(lse_i - lse), in the order of the parts: the bits do not depend on
// who came last. All CTAs of the grid must be resident together (one an SM, at most as many as SMs).
// The counter goes to n as parts arrive, on to 2 n as their joiners leave, and the last one clears it for the next launch.
#pragma once
#include "traits.cuh"

// o = sum_i w_i o_i for four columns of kRows rows a thread at a time, kParts parts at once: so many loads are under way
template <class T>
struct JoinRows {
    const Params& p;
    const float* weight;            // [my_rows][n]
    int half, n, my_rows;
    int64_t from, from_part, to;    // first row's partial result, the way to the next part's, the result

    template <int kRows, int kParts>
    __device__ __forceinline__ void run() const {
        using E = typename T::Element;
        constexpr int kColumns = T::kHalfBoxes * 16, kStep = 128 / kColumns;   // groups of four columns; rows side by side
        const int t = threadIdx.x & 127, col = half * T::kHalfBoxes * 64 + t % kColumns * 4;
        const int64_t row_step = (int64_t)n * p.latent;
        if (col >= p.latent || t / kColumns >= kStep) return;
#pragma unroll 1
        for (int i = t / kColumns; i < my_rows; i += kRows * kStep) {
            float4 acc[kRows] = {};
#pragma unroll 1
            for (int s0 = 0; s0 < n; s0 += kParts) {
                float4 v[kParts][kRows];
                float w[kParts][kRows];
#pragma unroll
                for (int s = 0; s < kParts; ++s)
#pragma unroll
                    for (int j = 0; j < kRows; ++j) {
                        const int k = i + j * kStep;
                        const bool live = s0 + s < n && k < my_rows;
                        w[s][j] = 0.f, v[s][j] = make_float4(0.f, 0.f, 0.f, 0.f);
                        if (live) {
                            w[s][j] = weight[k * n + s0 + s];
                            v[s][j] = __ldcg(reinterpret_cast<const float4*>(p.out_split + from + (s0 + s) * from_part + k * row_step + col));
                        }
                    }
#pragma unroll
                for (int s = 0; s < kParts; ++s)
#pragma unroll
                    for (int j = 0; j < kRows; ++j) {
                        acc[j].x += w[s][j] * v[s][j].x, acc[j].y += w[s][j] * v[s][j].y;
                        acc[j].z += w[s][j] * v[s][j].z, acc[j].w += w[s][j] * v[s][j].w;
                    }
            }
#pragma unroll
            for (int j = 0; j < kRows; ++j) {
                const int k = i + j * kStep;
                if (k < my_rows)
                    *reinterpret_cast<uint2*>((E*)p.out + to + k * row_step + col) =
                        make_uint2(ptx::pack(E{}, acc[j].x, acc[j].y), ptx::pack(E{}, acc[j].z, acc[j].w));
            }
        }
    }
};

template <class T>
__device__ __forceinline__ void join_request(float* weight, const Segments& seg, int m_block, int half, int r) {
    const Params& p = seg.p;
    const int mine = seg.slot(r);
    if (mine < 0) return;
    const int t = threadIdx.x & 127;
    const int first = __ldg(p.split_start + r), n = __ldg(p.split_start + r + 1) - first, share = mine - first;
    const int rows = seg.rows(), row_base = m_block * T::kM, valid = min(T::kM, rows - row_base);
    const int my_rows = share < valid ? (valid - share + n - 1) / n : 0;   // rows share, share + n, ...
    int* arrived = p.arrived + (r * gridDim.x + m_block) * 2 + half;
    if (t == 0) ptx::wait_at_least(arrived, n);
    ptx::named_sync(2 + half, 128);
    for (int i = t; i < my_rows * n; i += 128)
        weight[i] = __ldcg(p.lse_split + ((int64_t)half * p.slots + first + i % n) * rows + row_base + share + i / n * n);
    ptx::named_sync(2 + half, 128);
    // lse -> weights: a group of lanes a row, wider where there are many parts
    const int width = n <= 8 ? 1 : 32;
    for (int i = t / width; i < my_rows; i += 128 / width) {
        float* w = weight + i * n;
        float high = -INFINITY, total = 0.f;
        for (int s = t % width; s < n; s += width) high = fmaxf(high, w[s]);
        for (int d = width / 2; d; d /= 2) high = fmaxf(high, __shfl_xor_sync(~0u, high, d));
        const float sub = high == -INFINITY ? 0.f : high;
        for (int s = t % width; s < n; s += width) total += w[s] = exp2f(w[s] - sub);
        for (int d = width / 2; d; d /= 2) total += __shfl_xor_sync(~0u, total, d);
        const float inv = total == 0.f ? 0.f : 1.f / total;   // a NaN stays
        for (int s = t % width; s < n; s += width) w[s] *= inv;
        const int row = row_base + share + i * n;
        if (half == 0 && t % width == 0)
            p.lse[((int64_t)r * p.heads + row % p.heads) * p.seqlen_q + row / p.heads] = (sub + log2f(total)) * 0.69314718056f;
    }
    ptx::named_sync(2 + half, 128);
    const JoinRows<T> j{p, weight, half, n, my_rows, ((int64_t)first * rows + row_base + share) * p.latent, (int64_t)rows * p.latent,
                        ((int64_t)r * rows + row_base + share) * p.latent};
    if (my_rows > 4) j.template run<4, 4>();
    else j.template run<1, 16>();
    ptx::named_sync(2 + half, 128);
    if (t == 0 && ptx::add_release(arrived, 1) == 2 * n - 1) *arrived = 0;
}

// weight: 64 + n floats of shared memory that this half may use now
template <class T>
__device__ __forceinline__ void join(float* weight, const Segments& seg, int m_block, int half) {
    const int r0 = seg.part.r0, r1 = seg.part.r1;
#pragma unroll 1
    for (int r = r0; r <= r1; r += max(1, r1 - r0)) join_request<T>(weight, seg, m_block, half, r);   // only the first and the last can be split
}
