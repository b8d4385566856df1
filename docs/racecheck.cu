// What racecheck (compute-sanitizer 2025.3) says of a slot that is handed over by a named barrier and comes back by mbarriers: hopper-mla.md,
// "racecheck's rule". Warp 0 writes slot n % 2 and arrives at a named barrier; warp 1 waits there, reads, and arrives at an mbarrier; that is
// where warp 0 waits before it writes the slot again, or (modes 0, 1, 3, 4) warp 2, which then fills the mbarrier that warp 0 waits at.
//
//   nvcc -arch=sm_90a -O1 -std=c++20 docs/racecheck.cu -o racecheck && compute-sanitizer --tool racecheck ./racecheck MODE ROUNDS
//
//   MODE  back to warp 0                                                      reported, an H100, 3, 4 and 8 rounds (2 rounds: nothing)
//   0     warp 2 by a plain arrival                                           1, 2, 4 hazards
//   1     warp 2 by a bulk copy                                               1, 2, 4
//   2     directly                                                            1, 1, 1
//   3     as 0; warp 0 waits at a barrier of its own 32 threads each round    none
//   4     as 3, but every third round only                                    1, 2, 3
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

__device__ __forceinline__ uint32_t at(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void init(uint64_t* b, int n) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at(b)), "r"(n)); }
__device__ __forceinline__ void arrive(uint64_t* b) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at(b)) : "memory"); }
__device__ __forceinline__ void expect(uint64_t* b, int n) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at(b)), "r"(n) : "memory"); }
__device__ __forceinline__ void wait(uint64_t* b, int phase) {
  asm volatile("{ .reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra again; }" ::"r"(at(b)), "r"(phase) : "memory");
}
__device__ __forceinline__ void bar_arrive(int id, int n) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory"); }
__device__ __forceinline__ void bar_sync(int id, int n) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory"); }
template <int mode>
__global__ void k(int n_all, const float* g, float* out) {
  __shared__ float slot[2][32];
  __shared__ __align__(128) float dst[2][32];
  __shared__ uint64_t free_[2], full[2];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) { for (int i = 0; i < 2; ++i) init(free_ + i, 1), init(full + i, 1); asm volatile("fence.mbarrier_init.release.cluster;"); }
  __syncthreads();
  if (warp == 0) {
    for (int n = 0; n < n_all; ++n) {
      if (mode == 2) { if (n >= 2) wait(free_ + n % 2, (n - 2) / 2 & 1); }
      else wait(full + n % 2, n / 2 & 1);
      __syncwarp();
      slot[n % 2][lane] = n;
      bar_arrive(1 + n % 2, 64);
      if (mode == 3) bar_sync(5, 32);
      if (mode == 4 && n % 3 == 0) bar_sync(5, 32);
    }
  } else if (warp == 1) {
    float s = 0;
    for (int n = 0; n < n_all; ++n) {
      bar_sync(1 + n % 2, 64);
      s += slot[n % 2][lane];
      __syncwarp();
      if (lane == 0) arrive(free_ + n % 2);
    }
    out[lane] = s;
  } else if (mode != 2) {
    for (int n = 0; n < n_all; ++n) {
      if (n >= 2) wait(free_ + n % 2, (n - 2) / 2 & 1);
      __syncwarp();
      if (lane == 0) {
        if (mode == 1) {
          expect(full + n % 2, 128);
          asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 128, [%2];" ::"r"(at(dst[n % 2])), "l"(g), "r"(at(full + n % 2)) : "memory");
        } else arrive(full + n % 2);
      }
      __syncwarp();
    }
  }
}
int main(int c, char** v) {
  const int mode = atoi(v[1]), n = atoi(v[2]);
  float *g, *o; cudaMalloc(&g, 4096); cudaMemset(g, 0, 4096); cudaMalloc(&o, 4096);
  if (mode == 0) k<0><<<1, 96>>>(n, g, o);
  if (mode == 1) k<1><<<1, 96>>>(n, g, o);
  if (mode == 2) k<2><<<1, 96>>>(n, g, o);
  if (mode == 3) k<3><<<1, 96>>>(n, g, o);
  if (mode == 4) k<4><<<1, 96>>>(n, g, o);
  printf("%s ", cudaGetErrorString(cudaDeviceSynchronize())); float h; cudaMemcpy(&h, o, 4, cudaMemcpyDefault); printf("%g\n", h);
}
