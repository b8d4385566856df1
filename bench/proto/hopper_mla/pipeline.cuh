// The ring of key blocks and what its barriers promise. The only file that counts phases: block n has latent slot n % kStages
// and rope slot n % 2, and every barrier flips once an entry (a block of keys, or queries).
//
//   latent_full  both halves of a block are in shared memory        (TMA; left and right each expect their own half)
//   rope_full    so are its rope keys                                (TMA)
//   s_done       all four score warps have read the block's rope keys: P may overwrite them
//   p_full       P, the rescale factors and, with a request's last block, 1 / sum and lse are written; or: Q has been taken
//   half_free    one output warpgroup has done with its half and with P
#pragma once
#include "ptx.cuh"

// In a cluster every CTA loads a share of each key block for all, so a half is free when it is free in every CTA.
template <int kStages, int kCluster>
struct Pipeline {
    uint64_t latent_full[kStages], half_free[kStages][2], rope_full[2], s_done[2], p_full[2];

    __device__ __forceinline__ void init() {
        for (int i = 0; i < kStages; ++i) {
            ptx::mbar_init(at(latent_full[i]), 2);
            for (int h = 0; h < 2; ++h) ptx::mbar_init(at(half_free[i][h]), 4 * kCluster);
        }
        for (int i = 0; i < 2; ++i) {
            ptx::mbar_init(at(rope_full[i]), 1);
            ptx::mbar_init(at(s_done[i]), 4), ptx::mbar_init(at(p_full[i]), 4);
        }
        ptx::mbar_init_fence();
    }
    static __device__ __forceinline__ int slot(uint32_t n) { return n % kStages; }

    // ---- score
    __device__ __forceinline__ bool latent_ready(uint32_t n) {   // the same answer in every lane
        return __all_sync(~0u, ptx::mbar_test(at(latent_full[slot(n)]), n / kStages & 1));
    }
    __device__ __forceinline__ void wait_latent(uint32_t n) { ptx::mbar_wait(at(latent_full[slot(n)]), n / kStages & 1); }
    __device__ __forceinline__ void wait_rope(uint32_t n) { ptx::mbar_wait(at(rope_full[n & 1]), n >> 1 & 1); }
    __device__ __forceinline__ void arrive_s(uint32_t n) { arrive(s_done[n & 1]); }
    __device__ __forceinline__ void wait_s(uint32_t n) { ptx::mbar_wait(at(s_done[n & 1]), n >> 1 & 1); }
    __device__ __forceinline__ void publish(uint32_t n) {   // what this thread wrote is for wgmma: the async proxy
        ptx::fence_async_shared();
        arrive(p_full[n & 1]);
    }
    // ---- left, right
    __device__ __forceinline__ void wait_p(uint32_t n) { ptx::mbar_wait(at(p_full[n & 1]), n >> 1 & 1); }
    __device__ __forceinline__ void release(uint32_t n, int half) {
        uint64_t& bar = half_free[slot(n)][half];
        if constexpr (kCluster == 1) arrive(bar);
        else {
            __syncwarp();
            if ((threadIdx.x & 31) < kCluster) ptx::mbar_arrive_at(at(bar), threadIdx.x & 31);
        }
    }
    // by the warp that refills: every warp that used the half of block n is through
    __device__ __forceinline__ void wait_free(uint32_t n, int half) { ptx::mbar_wait(at(half_free[slot(n)][half]), n / kStages & 1); }

  private:
    static __device__ __forceinline__ uint32_t at(uint64_t& bar) { return ptx::smem_addr(&bar); }
    static __device__ __forceinline__ void arrive(uint64_t& bar) {   // one arrival a warp
        __syncwarp();
        if ((threadIdx.x & 31) == 0) ptx::mbar_arrive(at(bar));
    }
};
