// The same function as mla_decode.cuh for many rows (tensor-core bound): two warpgroups that take turns.
//
// Each warpgroup owns half of O's columns and scores every second block: block n's owner is warpgroup n % 2.
//   owner of n:  S(n) = Q K^T | O += P(n-1) V(n-1), P from shared memory | softmax(n), P(n) to shared memory | O += P(n) V(n)
// so one's softmax runs under the other's products. The row maximum and the rescale factors go from block to block through shared memory.
//
// Keys lie in a ring of kPieces pieces of 128 columns, four a block, in the order in which the owner's S takes them: first the owner's own
// half of the columns. Own pieces are free after O(n), the other half's after the other warpgroup's O(n), a good half block later; kPieces = 10
// gives each of them about a block's time to be loaded anew (docs/hopper-mla.md). NOT RUN ON A GPU YET: compiled, and its protocol simulated. P(n) lies over block n's rope keys.
// Q: two latent tiles and the rope tile in both warpgroups' registers, six in shared memory.
#pragma once
#include "join.cuh"
#include "output.cuh"

template <class Element_>
struct SeesawTraits : Traits<Element_, 64, 8, 1, false> {
    static constexpr int kThreads = 256, kPieces = 10, kPieceBytes = 2 * 64 * 128, kSmemQ = 6;
};

template <class T>
struct alignas(1024) SeesawStorage {
    uint8_t ring[T::kPieces][T::kPieceBytes];
    uint8_t rope[2][64 * 128];
    uint8_t q[T::kSmemQ][64 * 128];
    float scale[2][64];   // exp2(old max - new max) of block n at n % 2
    float high[64];       // the row maximum so far
    float sum[2][64];     // each warpgroup's part of the row sums, at a request's end
    uint64_t full[T::kPieces], piece_free[T::kPieces], rope_full[2], p_free[2], s_done[2];
    WalkState walk[2];
    Entry<T::kPageBoxes> entries[2][kEntries];
    Part part;
};

// Counts the phases: piece j of entry n is number 4 n + j of the ring; rope and P of entry n have slot n % 2.
template <class T>
struct SeesawRing {
    SeesawStorage<T>& sm;
    int me;   // warpgroup

    __device__ __forceinline__ void init() const {
        for (int i = 0; i < T::kPieces; ++i) ptx::mbar_init(at(sm.full[i]), 1), ptx::mbar_init(at(sm.piece_free[i]), 4);
        for (int i = 0; i < 2; ++i) ptx::mbar_init(at(sm.rope_full[i]), 1), ptx::mbar_init(at(sm.p_free[i]), 8), ptx::mbar_init(at(sm.s_done[i]), 4);
        ptx::mbar_init_fence();
    }
    __device__ __forceinline__ int first_piece(uint32_t n) const { return (n & 1) == me ? 0 : 2; }   // of my half in entry n
    static __device__ __forceinline__ int slot(uint32_t piece) { return piece % T::kPieces; }
    __device__ __forceinline__ uint8_t* data(uint32_t piece) const { return sm.ring[slot(piece)]; }
    __device__ __forceinline__ void wait_full(uint32_t piece) const { ptx::mbar_wait(at(sm.full[slot(piece)]), piece / T::kPieces & 1); }
    __device__ __forceinline__ void wait_free(uint32_t piece) const { ptx::mbar_wait(at(sm.piece_free[slot(piece)]), piece / T::kPieces & 1); }
    __device__ __forceinline__ void wait_rope(uint32_t n) const { ptx::mbar_wait(at(sm.rope_full[n & 1]), n >> 1 & 1); }
    // every warp of the owner has read the rope keys that P overwrites
    __device__ __forceinline__ void s_done(uint32_t n) const { arrive(sm.s_done[n & 1]); }
    __device__ __forceinline__ void wait_s(uint32_t n) const { ptx::mbar_wait(at(sm.s_done[n & 1]), n >> 1 & 1); }
    __device__ __forceinline__ void wait_p_free(uint32_t n) const { ptx::mbar_wait(at(sm.p_free[n & 1]), n >> 1 & 1); }
    // my half of entry n, and its P, are used up
    __device__ __forceinline__ void release(uint32_t n) const {
        const uint32_t piece = 4 * n + first_piece(n);
        arrive(sm.piece_free[slot(piece)]), arrive(sm.piece_free[slot(piece + 1)]), arrive(sm.p_free[n & 1]);
    }
    // P(n), its factors and the maximum: from the owner to the other, who waits (named barriers, one for each direction)
    __device__ __forceinline__ void publish(uint32_t n) const { ptx::named_arrive(4 + (n & 1), 256); }
    __device__ __forceinline__ void wait_p(uint32_t n) const { ptx::named_sync(4 + (n & 1), 256); }
    __device__ __forceinline__ void sync_both() const { ptx::named_sync(1, 256); }
    __device__ __forceinline__ void sync_mine() const { ptx::named_sync(2 + me, 128); }

  private:
    static __device__ __forceinline__ uint32_t at(uint64_t& bar) { return ptx::smem_addr(&bar); }
    static __device__ __forceinline__ void arrive(uint64_t& bar) {
        __syncwarp();
        if ((threadIdx.x & 31) == 0) ptx::mbar_arrive(at(bar));
    }
};

// box of 64 columns that piece j of entry n begins with: the owner's half first
__device__ __forceinline__ int piece_box(uint32_t n, int j) { return ((n & 1) ^ (j >> 1)) * 4 + (j & 1) * 2; }

template <class T>
__device__ __forceinline__ void load_piece(SeesawStorage<T>& sm, const SeesawRing<T>& ring, uint32_t piece, const volatile Entry<T::kPageBoxes>& e, const Maps& maps,
                                           const Params& p, int m_block) {
    load_boxes<T, 2>(ring.data(piece), maps.ckv, maps.q_nope, piece_box(piece / 4, piece & 3), e, sm.full[ring.slot(piece)], p, m_block, 0);
}

template <class T>
__device__ __forceinline__ void seesaw(SeesawStorage<T>& sm, const Segments& seg, int m_block, int me, const Maps& maps) {
    using namespace ptx;
    using E = typename T::Element;
    const Params& p = seg.p;
    const int t = threadIdx.x & 127, lane = t & 31, warp = t >> 5;
    const int row0 = warp * 16 + lane / 4, r0 = m_block * 64 + row0, r1 = r0 + 8;
    const SeesawRing<T> ring{sm, me};
    uint32_t n = 0;   // ring entries so far
    // ---- fill the ring: each warpgroup loads every second piece
    if (warp == 1 && lane == 0) {
        walk_start<T>(sm.walk[me], seg, m_block);
#pragma unroll 1
        for (int i = 0; i < kAhead; ++i) walk_step<T>(sm.walk[me], sm.entries[me][i], seg, m_block);
        cp_async_wait();
    }
    ring.sync_mine();
    if (warp == 0) {
#pragma unroll 1
        for (int i = me; i < T::kPieces; i += 2) {
            const volatile auto& e = sm.entries[me][i / 4];
            if (e.at != kEnd && elect_one()) load_piece<T>(sm, ring, i, e, maps, p, m_block);
            __syncwarp();
        }
        const volatile auto& e = sm.entries[me][me];   // rope keys: each warpgroup one slot
        if (e.at != kEnd && elect_one()) load_boxes<T, 1>(sm.rope[me], maps.kpe, maps.q_pe, 0, e, sm.rope_full[me], p, m_block, 0);
        __syncwarp();
    }
    // my half of entry `done` is used up: load what comes into its place
    auto refill = [&](uint32_t done) {
        ring.release(done);
        if (warp == 0) {
            const uint32_t piece = 4 * done + ring.first_piece(done);
#pragma unroll 1
            for (uint32_t i = piece; i < piece + 2; ++i) {
                const volatile auto& e = sm.entries[me][(i + T::kPieces) / 4 % kEntries];
                if (e.at != kEnd) {
                    ring.wait_free(i);
                    if (elect_one()) load_piece<T>(sm, ring, i + T::kPieces, e, maps, p, m_block);
                }
                __syncwarp();
            }
            if ((done & 1) != me) {   // not the owner: the later one of the two; the rope keys of entry done + 2 over P(done)
                const volatile auto& e = sm.entries[me][(done + 2) % kEntries];
                if (e.at != kEnd) {
                    ring.wait_p_free(done);
                    if (elect_one()) load_boxes<T, 1>(sm.rope[done & 1], maps.kpe, maps.q_pe, 0, e, sm.rope_full[done & 1], p, m_block, 0);
                }
                __syncwarp();
            }
        }
        if (warp == 1) {
            if (lane == 0) {
                cp_async_wait();
                walk_step<T>(sm.walk[me], sm.entries[me][(done + kAhead) % kEntries], seg, m_block);
            }
            __syncwarp();
        }
    };
#pragma unroll 1
    for (int r = seg.part.r0; r <= seg.part.r1; ++r) {
        const int blocks = seg.count(r);
        if (blocks <= 0) {
            clear_rows<T>(p, r, m_block, me);
            continue;
        }
        // ---- Q: the last latent tile of each half and the rope tile to registers, the others to shared memory
        uint32_t q[3][4][4];   // the tiles 3 + 4 me, 3 + 4 (1 - me), rope; A fragments as in score.cuh
        {
            ring.sync_both();   // the last request's products have read Q
#pragma unroll 1
            for (int j = 0; j < 4; ++j) ring.wait_full(4 * n + j);
            ring.wait_rope(n);
            __syncwarp();
            const int row = warp * 16 + (lane & 15);
#pragma unroll
            for (int i = 0; i < 3; ++i) {
                const int half = i ? 1 - me : me, j = ((n & 1) == half ? 0 : 2) + 1;   // the half's second piece, its second box
                const uint32_t base = smem_addr(i < 2 ? ring.data(4 * n + j) + 64 * 128 : sm.rope[n & 1]) + row * 128;
#pragma unroll
                for (int k = 0; k < 4; ++k) ldmatrix_x4(base + (((k * 2 + lane / 16) ^ (row & 7)) << 4), q[i][k]);
            }
#pragma unroll
            for (int i = 0; i < 3; ++i) {   // my half's first three tiles: both warpgroups' products read them
                const uint8_t* from = ring.data(4 * n + ring.first_piece(n) + i / 2) + (i & 1) * 64 * 128;
#pragma unroll 1
                for (int b = t * 16; b < 64 * 128; b += 128 * 16)
                    *reinterpret_cast<int4*>(&sm.q[me * 3 + i][b]) = *reinterpret_cast<const int4*>(from + b);
            }
            fence_async_shared();
            ring.sync_both();
            if ((n & 1) == me) ring.s_done(n);   // every barrier flips once an entry
            refill(n), ++n;
        }
        Output<T> out;
        float sum0 = 0.f, sum1 = 0.f;
        int accumulate = 0;
        const int masked = seg.masked(r);
        const uint32_t first = n, last = n + blocks - 1;
        // O += P(i) V(i), to be waited for
        auto product = [&](uint32_t i) {
            const uint64_t pd = desc_k_major(smem_addr(sm.rope[i & 1]));
            const uint32_t piece = 4 * i + ring.first_piece(i);
            const uint64_t v0 = desc_mn_major(smem_addr(ring.data(piece)), 64 * 128), v1 = desc_mn_major(smem_addr(ring.data(piece + 1)), 64 * 128);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                wgmma_ss_t_n128(E{}, out.o[0], pd + k * 2, v0 + k * 128, accumulate | k);
                wgmma_ss_t_n128(E{}, out.o[1], pd + k * 2, v1 + k * 128, accumulate | k);
            }
            wgmma_commit();
            accumulate = 1;
        };
        // the other's block: its factors, then its product
        auto take_other = [&](uint32_t i) {
            ring.wait_p(i);
            const float scale0 = sm.scale[i & 1][row0], scale1 = sm.scale[i & 1][row0 + 8];
            if (__any_sync(~0u, scale0 != 1.f || scale1 != 1.f)) {
                wgmma_wait<0>();
                if (accumulate) out.rescale(scale0, scale1);
                sum0 *= scale0, sum1 *= scale1;
            }
            product(i);
        };
#pragma unroll 1
        for (; n <= last; ++n) {
            if ((n & 1) != me) {
                if (n == last) {
                    take_other(n);
                    wgmma_wait<0>();
                    pin(out.o[0]), pin(out.o[1]);
                    refill(n);
                }
                continue;
            }
            // ---- S = Q K^T, my half of the columns first
            float s[32];
            auto smem_steps = [&](int tile, uint64_t b, bool begin) {   // tile: which of the six
                const uint64_t a = desc_k_major(smem_addr(sm.q[tile]));
#pragma unroll
                for (int k = 0; k < 4; ++k) wgmma_ss_n64(E{}, s, a + k * 2, b + k * 2, !(begin && k == 0));
            };
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                ring.wait_full(4 * n + j);
                __syncwarp();
                wgmma_fence();
                const uint64_t b = desc_k_major(smem_addr(ring.data(4 * n + j)));
                const int half = j < 2 ? me : 1 - me;
                smem_steps(half * 3 + (j & 1) * 2, b, j == 0);
                if (j & 1) {
#pragma unroll
                    for (int k = 0; k < 4; ++k) wgmma_rs_n64(E{}, s, q[j / 2][k], b + (64 * 128 >> 4) + k * 2, 1);
                } else {
                    smem_steps(half * 3 + 1, b + (64 * 128 >> 4), false);
                }
            }
            ring.wait_rope(n);
            __syncwarp();
            wgmma_fence();
            {
                const uint64_t b = desc_k_major(smem_addr(sm.rope[n & 1]));
#pragma unroll
                for (int k = 0; k < 4; ++k) wgmma_rs_n64(E{}, s, q[2][k], b + k * 2, 1);
            }
            wgmma_commit();
            // ---- the block before, behind S(n)
            if (n > first) {
                take_other(n - 1);
                wgmma_wait<1>();
            } else {
                wgmma_wait<0>();
            }
            pin(s);
            ring.s_done(n);
            const int left = last - n + 1;
            if (left <= masked) {
                const int j = seg.end(r) - left, kv_len = seg.kv_len(r), c0 = j * 64 + (lane & 3) * 2;
                const int lim0 = p.causal ? kv_len - p.seqlen_q + r0 / p.heads + 1 : kv_len;   // keys seen by the two rows
                const int lim1 = p.causal ? kv_len - p.seqlen_q + r1 / p.heads + 1 : kv_len;
#pragma unroll
                for (int i = 0; i < 8; ++i) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        if (c0 + i * 8 + e >= lim0) s[i * 4 + e] = -INFINITY;
                        if (c0 + i * 8 + e >= lim1) s[i * 4 + 2 + e] = -INFINITY;
                    }
                }
                const int valid = kv_len - j * 64;
                if (valid < 64) {   // rows of V past the end may hold NaN, and 0 * NaN is NaN
                    ring.wait_s(n);
#pragma unroll 1
                    for (int c = 0; c < 8; ++c)
#pragma unroll 1
                        for (int i = t * 16; i < (64 - valid) * 128; i += 128 * 16)
                            *reinterpret_cast<int4*>(ring.data(4 * n + c / 2) + (c & 1) * 64 * 128 + valid * 128 + i) = make_int4(0, 0, 0, 0);
                }
            }
            // ---- softmax: the maximum lags, as in score.cuh
            float max0 = -INFINITY, max1 = -INFINITY, scale0 = 1.f, scale1 = 1.f;
            if (n > first) max0 = sm.high[row0], max1 = sm.high[row0 + 8];
            {
                float a[2] = {s[0], s[1]}, b[2] = {s[2], s[3]};
#pragma unroll
                for (int i = 1; i < 8; ++i) {
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
            uint32_t pk[8][2];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const float a = exp2_approx(fmaf(s[i * 4], p.scale_log2, -sub0)), b = exp2_approx(fmaf(s[i * 4 + 1], p.scale_log2, -sub0));
                const float c = exp2_approx(fmaf(s[i * 4 + 2], p.scale_log2, -sub1)), d = exp2_approx(fmaf(s[i * 4 + 3], p.scale_log2, -sub1));
                sum0 += a + b, sum1 += c + d;
                pk[i][0] = pack(E{}, a, b), pk[i][1] = pack(E{}, c, d);
            }
            // ---- P(n)
            ring.wait_s(n);
            {
                const int row = warp * 16 + (lane & 15);
                const uint32_t base = smem_addr(sm.rope[n & 1]) + row * 128;
#pragma unroll
                for (int i = 0; i < 8; i += 2)
                    stmatrix_x4(base + (((i + lane / 16) ^ (row & 7)) << 4), pk[i][0], pk[i][1], pk[i + 1][0], pk[i + 1][1]);
            }
            if ((lane & 3) == 0) {
                sm.scale[n & 1][row0] = scale0, sm.scale[n & 1][row0 + 8] = scale1;
                sm.high[row0] = max0, sm.high[row0 + 8] = max1;
            }
            fence_async_shared();
            __syncwarp();
            ring.publish(n);
            // ---- the block before is through; then mine
            wgmma_wait<0>();
            pin(out.o[0]), pin(out.o[1]);
            if (n > first) refill(n - 1);
            if (accumulate && __any_sync(~0u, scale0 != 1.f || scale1 != 1.f)) out.rescale(scale0, scale1);
            ring.sync_mine();   // P(n) is whole
            product(n);
            wgmma_wait<0>();
            pin(out.o[0]), pin(out.o[1]);
            refill(n);
        }
        // ---- the row sums of both
        sum0 += __shfl_xor_sync(~0u, sum0, 1), sum1 += __shfl_xor_sync(~0u, sum1, 1);
        sum0 += __shfl_xor_sync(~0u, sum0, 2), sum1 += __shfl_xor_sync(~0u, sum1, 2);
        if ((lane & 3) == 0) sm.sum[me][row0] = sum0, sm.sum[me][row0 + 8] = sum1;
        ring.sync_both();
        sum0 = sm.sum[0][row0] + sm.sum[1][row0], sum1 = sm.sum[0][row0 + 8] + sm.sum[1][row0 + 8];
        const float lse0 = sm.high[row0] + log2f(sum0), lse1 = sm.high[row0 + 8] + log2f(sum1);
        const float inv0 = sum0 > 0.f ? 1.f / sum0 : (sum0 == 0.f ? 0.f : sum0), inv1 = sum1 > 0.f ? 1.f / sum1 : (sum1 == 0.f ? 0.f : sum1);   // a NaN stays
        store_rows<T>(seg, r, m_block, me, out, inv0, inv1, lse0, lse1);
    }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1) seesaw_kernel(const __grid_constant__ Params p, const __grid_constant__ Maps maps) {
    using namespace ptx;
    extern __shared__ __align__(1024) uint8_t smem_raw[];
    SeesawStorage<T>& sm = *reinterpret_cast<SeesawStorage<T>*>(smem_raw);
    const int me = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        SeesawRing<T>{sm, 0}.init();
        sm.part = p.part[blockIdx.y];
    }
    if (threadIdx.x == 128) prefetch_map(&maps.ckv), prefetch_map(&maps.kpe), prefetch_map(&maps.q_nope), prefetch_map(&maps.q_pe);
    __syncthreads();
    const Segments seg{p, sm.part, T::kN};
    seesaw<T>(sm, seg, blockIdx.x, me, maps);
    join<T>(reinterpret_cast<float*>(sm.ring[me]), seg, blockIdx.x, me);   // the ring is free now
}
