// The ring of key blocks and what its barriers promise. The only file that counts phases: block n has latent slot n % kStages
// and rope slot
// n % kRopeStages, and every barrier flips once an entry (a block of keys, or queries).
//
// A half of the latents is made of pieces: the columns that one instruction of O takes. Each piece has its own barriers, so S begins when
// its first piece is there, and a piece is loaded anew as soon as O has used it.
//
//   latent_full  a piece of a block is in shared memory              (TMA)
//   rope_full    so are its rope keys                                (TMA)
//   s_done       all four score warps have read the block's rope keys: P may overwrite them
//   P            named barriers (they wake faster): P, the rescale factors and, with a request's last block, 1 / sum and lse are
//                written; or: Q has been taken. score arrives, left or right waits: one for each and each rope slot
//   latent_free  an output warpgroup has done with a piece; with its last one: with P too
// In a cluster every CTA loads a share of each key block for all, so a piece is free when it is free in every CTA.
#pragma once
#include "ptx.cuh"

template <int kStages, int kRopeStages, int kPieces, int kCluster>
struct Pipeline {
    uint64_t latent_full[kStages][2][kPieces], latent_free[kStages][2][kPieces], rope_full[kRopeStages], s_done[kRopeStages];

    __device__ __forceinline__ void init() {
        for (int i = 0; i < kStages; ++i)
            for (int h = 0; h < 2; ++h)
                for (int c = 0; c < kPieces; ++c) ptx::mbar_init(at(latent_full[i][h][c]), 1), ptx::mbar_init(at(latent_free[i][h][c]), 4 * kCluster);
        for (int i = 0; i < kRopeStages; ++i) ptx::mbar_init(at(rope_full[i]), 1), ptx::mbar_init(at(s_done[i]), 4);
        ptx::mbar_init_fence();
    }
    static __device__ __forceinline__ int slot(uint32_t n) { return n % kStages; }
    static __device__ __forceinline__ int rope_slot(uint32_t n) { return n % kRopeStages; }

    // ---- score
    __device__ __forceinline__ bool latent_ready(uint32_t n) {   // its first piece; the same answer in every lane
        return __all_sync(~0u, ptx::mbar_test(at(latent_full[slot(n)][0][0]), n / kStages & 1));
    }
    __device__ __forceinline__ void wait_latent(uint32_t n, int half, int piece) {
        ptx::mbar_wait(at(latent_full[slot(n)][half][piece]), n / kStages & 1);
    }
    __device__ __forceinline__ void wait_rope(uint32_t n) { ptx::mbar_wait(at(rope_full[rope_slot(n)]), n / kRopeStages & 1); }
    __device__ __forceinline__ void arrive_s(uint32_t n) { arrive(s_done[rope_slot(n)]); }
    __device__ __forceinline__ void wait_s(uint32_t n) { ptx::mbar_wait(at(s_done[rope_slot(n)]), n / kRopeStages & 1); }
    __device__ __forceinline__ void publish(uint32_t n) {   // what this thread wrote is for wgmma: the async proxy
        ptx::fence_async_shared();
        __syncwarp();
        ptx::named_arrive(p_barrier(n, 0), 256), ptx::named_arrive(p_barrier(n, 1), 256);
    }
    // ---- left, right
    __device__ __forceinline__ void wait_p(uint32_t n, int half) { ptx::named_sync(p_barrier(n, half), 256); }
    __device__ __forceinline__ void release(uint32_t n, int half, int piece) {
        uint64_t& bar = latent_free[slot(n)][half][piece];
        if constexpr (kCluster == 1) arrive(bar);
        else {
            __syncwarp();
            if ((threadIdx.x & 31) < kCluster) ptx::mbar_arrive_at(at(bar), threadIdx.x & 31);
        }
    }
    // by the warp that refills: every warp that used the piece of block n is through
    __device__ __forceinline__ void wait_free(uint32_t n, int half, int piece) {
        ptx::mbar_wait(at(latent_free[slot(n)][half][piece]), n / kStages & 1);
    }

  private:
    static __device__ __forceinline__ int p_barrier(uint32_t n, int half) { return 4 + half * kRopeStages + rope_slot(n); }
    static __device__ __forceinline__ uint32_t at(uint64_t& bar) { return ptx::smem_addr(&bar); }
    static __device__ __forceinline__ void arrive(uint64_t& bar) {   // one arrival a warp
        __syncwarp();
        if ((threadIdx.x & 31) == 0) ptx::mbar_arrive(at(bar));
    }
};
