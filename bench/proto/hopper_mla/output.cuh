// The two output warpgroups: left and right half of O's columns. O = O * scale + P V, V being the latent part of the keys, read MN-major;
// then the half's next load (each refills what it has used, without asking the other), and the request's rows to memory.
#pragma once
#include "loads.cuh"
#include "trace.cuh"
#include "wgmma.cuh"

// four lanes have each a quarter (2 columns) of four 8-column groups: lane q gets all of group q
__device__ __forceinline__ int4 gather_group(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
    const uint32_t ab = __shfl_xor_sync(~0u, odd ? a : b, 1), cd = __shfl_xor_sync(~0u, odd ? c : d, 1);
    if (odd) a = ab, c = cd;
    else b = ab, d = cd;
    const uint32_t ac = __shfl_xor_sync(~0u, high ? a : c, 2), bd = __shfl_xor_sync(~0u, high ? b : d, 2);
    if (high) a = ac, b = bd;
    else c = ac, d = bd;
    return make_int4(a, b, c, d);
}

template <class T>
struct Output {
    float o[T::kOutPieces][T::kOutN / 2];
    __device__ __forceinline__ float& at(int i) { return o[i / (T::kOutN / 2)][i % (T::kOutN / 2)]; }
    static constexpr int kCount = T::kHalfBoxes * 32;

    __device__ __forceinline__ void rescale(float scale0, float scale1) {
#pragma unroll
        for (int i = 0; i < kCount; i += 4) at(i) *= scale0, at(i + 1) *= scale0, at(i + 2) *= scale1, at(i + 3) *= scale1;
    }
    // columns of row e (0: row0, 1: row0 + 8) to a 16-bit row; latent: how many columns there are from `out` on
    __device__ __forceinline__ void store(typename T::Element* out, int e, float inv, bool live, int columns) {
        using E = typename T::Element;
        const int q = threadIdx.x & 3;
#pragma unroll
        for (int g = 0; g < T::kHalfBoxes * 8; g += 4) {
            uint32_t x[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) x[j] = ptx::pack(E{}, at((g + j) * 4 + e * 2) * inv, at((g + j) * 4 + e * 2 + 1) * inv);
            const int4 v = gather_group(x[0], x[1], x[2], x[3]);
            if (live && (g + q) * 8 < columns) *reinterpret_cast<int4*>(out + (g + q) * 8) = v;
        }
    }
    // likewise to a float32 row: 32 bytes of a row by four lanes
    __device__ __forceinline__ void store_partial(float* out, int e, float inv, bool live, int columns) {
        const int q = threadIdx.x & 3;
#pragma unroll
        for (int g = 0; g < T::kHalfBoxes * 8; ++g)
            if (live && g * 8 < columns) *reinterpret_cast<float2*>(out + g * 8 + q * 2) = make_float2(at(g * 4 + e * 2) * inv, at(g * 4 + e * 2 + 1) * inv);
    }
};

// a request without keys
template <class T>
__device__ __noinline__ void clear_rows(const Params& p, int r, int m_block, int half) {
    const int rows = p.seqlen_q * p.heads, first = m_block * T::kM, t = threadIdx.x & 127;
    const int columns = min(p.latent - half * T::kHalfBoxes * 64, T::kHalfBoxes * 64);
    for (int row = first; row < min(rows, first + T::kM); ++row) {
        typename T::Element* out = (typename T::Element*)p.out + ((int64_t)r * rows + row) * p.latent + half * T::kHalfBoxes * 64;
        if (t * 8 < columns) *reinterpret_cast<int4*>(out + t * 8) = make_int4(0, 0, 0, 0);
        if (half == 0 && t == 0) p.lse[((int64_t)r * p.heads + row % p.heads) * p.seqlen_q + row / p.heads] = -INFINITY;
    }
}

// a request's rows, whole or as a part's partial result
template <class T>
__device__ __forceinline__ void store_rows(const Segments& seg, int r, int m_block, int half, Output<T>& out, float inv0, float inv1, float lse0, float lse1) {
    using E = typename T::Element;
    const Params& p = seg.p;
    const int t = threadIdx.x & 127, lane = t & 31, row0 = t / 32 * 16 + lane / 4, rows = seg.rows();
    const int slot = seg.slot(r);
    const int columns = p.latent - half * T::kHalfBoxes * 64;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
        const int row = m_block * T::kM + row0 + e * 8;
        const bool live = row < rows, lead = live && (lane & 3) == 0;
        const float inv = e ? inv1 : inv0, lse = e ? lse1 : lse0;
        if (slot < 0) {
            if (lead && half == 0)
                p.lse[((int64_t)r * p.heads + row % p.heads) * p.seqlen_q + row / p.heads] = lse * 0.69314718056f;
            out.store((E*)p.out + ((int64_t)r * rows + row) * p.latent + half * T::kHalfBoxes * 64, e, inv, live, columns);
        } else {
            if (lead) p.lse_split[((int64_t)half * p.slots + slot) * rows + row] = lse;
            out.store_partial(p.out_split + ((int64_t)slot * rows + row) * p.latent + half * T::kHalfBoxes * 64, e, inv, live, columns);
        }
    }
    if (slot >= 0) {   // tell those who have the request's other parts
        ptx::named_sync(2 + half, 128);
        if (t == 0) ptx::add_release(p.arrived + (r * gridDim.x + m_block) * 2 + half, 1);
    }
}

template <class T>
__device__ __forceinline__ void output(SharedStorage<T>& sm, const Segments& seg, int m_block, int half, const Maps& maps) {
    using namespace ptx;
    using E = typename T::Element;
    const Params& p = seg.p;
    const int t = threadIdx.x & 127, lane = t & 31, warp = t >> 5;
    const int row0 = warp * 16 + lane / 4;
    uint32_t n = 0;   // ring entries so far
    auto walk_to = [&](int from, int to) {
        if (warp == 1 && lane == 0) {
#pragma unroll 1
            for (int i = from; i < to; ++i) walk_step<T>(sm.walk[half], sm.entries[half][i], seg, m_block);
        }
    };
    if (warp == 1 && lane == 0) walk_start<T>(sm.walk[half], seg, m_block);
    walk_to(0, T::kLatentStages);
    named_sync(2 + half, 128);
    auto fill = [&](bool queries) {   // the ring's first entries
        if (warp != 0) return;
#pragma unroll 1
        for (int i = 0; i < T::kLatentStages; ++i) {
            const volatile auto& e = sm.entry(half, i);
            if (e.at != kEnd && (e.at <= kQ) == queries && elect_one()) {
                if (half == 1 && i < T::kRopeStages) load_rope<T>(sm, i, e, maps, p, m_block);
#pragma unroll 1
                for (int c = 0; c < T::kOutPieces; ++c) load_latent<T>(sm, i, half, c, e, maps, p, m_block);
            }
            __syncwarp();
        }
    };
    fill(true);        // queries need no page number
    cp_async_wait();
    named_sync(2 + half, 128);
    TRACE_TIME(p, 1 + half, 3);
    fill(false);
    walk_to(T::kLatentStages, kAhead);   // these wait for nothing but the first block's barriers
    if (warp == 1) cp_async_wait();
    __syncwarp();
    // entry n's piece is used up (release): refill what it held
    auto refill = [&](int piece) {
        if (warp == 0) {
            const volatile auto& e = sm.entry(half, n + T::kLatentStages);
            if (e.at != kEnd) {
                sm.pipe.wait_free(n, half, piece);
                if (elect_one()) load_latent<T>(sm, n + T::kLatentStages, half, piece, e, maps, p, m_block);
            }
            __syncwarp();
        }
    };
    // entry n's last piece is used up, and P
    auto advance = [&] {
        sm.pipe.release(n, half, T::kOutPieces - 1);
        if (half == 1 && warp == 0) {   // rope keys of a later block over P(n), which both warpgroups must have used
            const volatile auto& f = sm.entry(1, n + T::kRopeStages);
            if (f.at != kEnd) {
                sm.pipe.wait_free(n, 0, T::kOutPieces - 1), sm.pipe.wait_free(n, 1, T::kOutPieces - 1);
                if (elect_one()) load_rope<T>(sm, n + T::kRopeStages, f, maps, p, m_block);
            }
            __syncwarp();
        }
        refill(T::kOutPieces - 1);
        if (warp == 1) {
            if (lane == 0) {
                cp_async_wait();   // the last step's page number
                walk_step<T>(sm.walk[half], sm.entries[half][(n + kAhead) % kEntries], seg, m_block);
            }
            __syncwarp();
        }
        ++n;
    };
#pragma unroll 1
    for (int r = seg.part.r0; r <= seg.part.r1; ++r) {
        int left = seg.count(r);
        if (left <= 0) {
            clear_rows<T>(p, r, m_block, half);
            continue;
        }
#pragma unroll 1
        for (int e = seg.q_entries(m_block); e > 0; --e) {
            sm.pipe.wait_p(n, half);
#pragma unroll 1
            for (int c = 0; c < T::kOutPieces - 1; ++c) sm.pipe.release(n, half, c), refill(c);
            advance();
        }
        Output<T> out;
        float inv0, inv1, lse0, lse1;
        int accumulate = 0;
#pragma unroll 1
        for (; left > 0; --left) {
            sm.pipe.wait_p(n, half);
            TRACE_AT(p, 1 + half, n, 0);
            const int slot = sm.pipe.slot(n), rope_slot = sm.pipe.rope_slot(n);
            const float scale0 = sm.scale[rope_slot][row0], scale1 = sm.scale[rope_slot][row0 + 8];
            if (accumulate && __any_sync(~0u, scale0 != 1.f || scale1 != 1.f)) out.rescale(scale0, scale1);
            const uint64_t pd = desc_k_major(smem_addr(sm.rope[rope_slot][0]));
            const uint64_t vd = desc_mn_major(smem_addr(sm.latent[slot][half * T::kHalfBoxes]), T::kBoxBytes);
            TRACE_AT(p, 1 + half, n, 1);
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < T::kOutPieces; ++i) {
#pragma unroll
                for (int k = 0; k < T::kN / 16; ++k) {
                    const uint64_t b = vd + k * 128 + i * T::kPieceBoxes * (T::kBoxBytes >> 4);
                    if constexpr (T::kOutN == 256) wgmma_ss_t_n256(E{}, out.o[i], pd + k * 2, b, accumulate | k);
                    else if constexpr (T::kOutN == 128) wgmma_ss_t_n128(E{}, out.o[i], pd + k * 2, b, accumulate | k);
                    else wgmma_ss_t_n64(E{}, out.o[i], pd + k * 2, b, accumulate | k);
                }
                wgmma_commit();
            }
            if constexpr (T::kOutPieces > 1) {   // a piece is refilled while the next one's product runs
#pragma unroll
                for (int i = 0; i < T::kOutPieces - 1; ++i) {
                    if (T::kOutPieces == 3 && i == 0) wgmma_wait<2>();
                    else wgmma_wait<1>();
                    sm.pipe.release(n, half, i), refill(i);
                }
            }
            wgmma_wait<0>();
#pragma unroll
            for (int i = 0; i < T::kOutPieces; ++i) pin(out.o[i]);
            TRACE_AT(p, 1 + half, n, 2);
            if (left == 1) inv0 = sm.inv_sum[row0], inv1 = sm.inv_sum[row0 + 8], lse0 = sm.lse[row0], lse1 = sm.lse[row0 + 8];
            advance();
            accumulate = 1;
        }
        // ---- this request's rows
        TRACE_TIME(p, 1 + half, 4);
        store_rows<T>(seg, r, m_block, half, out, inv0, inv1, lse0, lse1);
    }
}
