// Float8 latents for at most 16 query rows: a kernel of their own, for which bytes are the limit. The other (kernel.cuh, widen.cuh) writes
// wide blocks to shared memory, for products of 64 rows; here a warp widens in registers what mma.sync, of 16 rows, wants there:
//
//   S = Q K^T   a word of ldmatrix is four columns of a key, 4 t .. 4 t + 3. They stand for 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of a product; so
//               do Q's. t: lane % 4
//   O = P V     of ldmatrix.trans it is two columns of two keys; its bytes permuted, each half is two keys of a column
//
// Warpgroups: score, 16 keys of each block a warp, Q in registers; two for O, 64 columns a warp; and one of which a warp loads. Score is a
// block ahead: P has two places. float16 and scales as in widen.cuh.
//
// Cost a block of 64 keys, four schedulers: 136 products of 16 x 8 x 16 each, 256 conversions and 128 permutations at two cycles, 130 KB
// through shared memory: about 1000 cycles each, side by side. 40 KB from memory: 3000.
#pragma once

#include "cuda/mla_decode/sm90/gather.cuh"
#include "cuda/mla_decode/sm90/loads.cuh"
#include "cuda/mla_decode/sm90/plan.cuh"

namespace attile::cuda::mla_sm90::few_rows {

struct Shape {
  using Element = Bf16;
  static constexpr int kM = 16, kN = 64, kLatent = 512, kRope = 64, kQBoxes = kLatent / 64;
  static constexpr int kThreads = 512, kScoreRegisters = 232, kOutRegisters = 120, kProducerRegisters = 40;
  static_assert(kScoreRegisters + 2 * kOutRegisters + kProducerRegisters == 4 * 128);
  static constexpr int kHalfBoxes = 4, kOutN = 256;  // columns of an output warpgroup
  static constexpr int kStages = 5, kPlaces = 2, kOutWarps = 8;
  // Boxes of keys: few rows of 128 bytes, in the order of memory (docs/hopper-mla.md).
  static constexpr int kBoxRows = 8, kBoxColumns = 128, kBoxes = kLatent / kBoxColumns;
  static constexpr int kShared = 232448;
};

// A block of keys as it comes: tiles of 128 bytes a row, swizzled.
struct Block {
  uint8_t latent[Shape::kBoxes][Shape::kN * 128], rope[Shape::kN * 128];
};

// full: a block, or Q, is there (TMA). used: the output warps are through with a block. q_taken: the score warps with Q. Beside them named
// barriers, of each kind one a place of P. At kFree.. output arrives, which has read what was there, and score waits, whose warps have left
// their maxima. At kThere.. score arrives, with P and what is beside it, and output waits.
struct alignas(1024) Storage {
  Block keys[Shape::kStages];
  uint8_t q[Shape::kQBoxes + 1][Shape::kM * 128];  // the rope part last; where parts are joined when Q has been taken
  uint8_t p[Shape::kPlaces][Shape::kM * 128];
  float scale[Shape::kPlaces][Shape::kM];  // exp2(old max - new max)
  float high[Shape::kPlaces][Shape::kM];   // with a request's last block: its maximum, base 2
  // Of each score warp's keys: likewise the sums, and a block's maxima.
  alignas(16) float sums[Shape::kPlaces][Shape::kM][4], maxima[Shape::kPlaces][Shape::kM][4];
  uint64_t full[Shape::kStages], used[Shape::kStages], q_full, q_taken;
  Part part;

  static constexpr int kFree = 4, kThere = kFree + Shape::kPlaces, kThreads = 384;
  __device__ __forceinline__ void init() {
    for (int i = 0; i < Shape::kStages; ++i)
      ptx::mbarrier_init(ptx::shared_address(&full[i]), 1), ptx::mbarrier_init(ptx::shared_address(&used[i]), Shape::kOutWarps);
    ptx::mbarrier_init(ptx::shared_address(&q_full), 1), ptx::mbarrier_init(ptx::shared_address(&q_taken), 4);
    ptx::fence_barrier_init();
  }
  // Every barrier flips once a block that has its place, Q's once a request.
  __device__ __forceinline__ void wait_keys(uint32_t n) { wait(full, n); }
  __device__ __forceinline__ void wait_used(uint32_t n) { wait(used, n); }
  __device__ __forceinline__ void release(uint32_t n) { arrive(used[n % Shape::kStages]); }
  // P(n) has its place, and all maxima of block n are there.
  __device__ __forceinline__ void wait_place(uint32_t n) { ptx::named_barrier_sync(kFree + n % Shape::kPlaces, kThreads); }
  __device__ __forceinline__ void free_place(uint32_t n) { ptx::named_barrier_arrive(kFree + n % Shape::kPlaces, kThreads); }
  __device__ __forceinline__ void publish(uint32_t n) { ptx::named_barrier_arrive(kThere + n % Shape::kPlaces, kThreads); }
  __device__ __forceinline__ void wait_p(uint32_t n) { ptx::named_barrier_sync(kThere + n % Shape::kPlaces, kThreads); }
  static __device__ __forceinline__ void arrive(uint64_t& bar) {  // one arrival a warp
    __syncwarp();
    if ((threadIdx.x & 31) == 0) ptx::mbarrier_arrive(ptx::shared_address(&bar));
  }

 private:
  static __device__ __forceinline__ void wait(uint64_t (&bars)[Shape::kStages], uint32_t n) {
    mbarrier_wait(ptx::shared_address(&bars[n % Shape::kStages]), n / Shape::kStages & 1);
  }
};

__device__ __forceinline__ float4 all_of(const float (&of_warps)[4]) { return reinterpret_cast<const float4&>(of_warps); }

// Half of a word, widened.
__device__ __forceinline__ uint32_t low_two(uint32_t x) { return e4m3_to_f16(static_cast<uint16_t>(x)); }
__device__ __forceinline__ uint32_t high_two(uint32_t x) { return e4m3_to_f16(static_cast<uint16_t>(x >> 16)); }

// The warp that loads.
struct Loads {
  Storage& sm;
  const Segments& seg;
  const Maps& maps;
  Others& others;
  bool met = false;

  // Who waits for these loads meets first.
  __device__ __forceinline__ void meet() {
    if (!met) others.wait();
    met = true;
  }
  __device__ __forceinline__ int rope_column() const { return seg.p.rope == 0 ? Shape::kLatent : 0; }  // where there is none: zeros

  __device__ __forceinline__ void queries(int r) const {
    if (!ptx::elect_one()) return;
    const uint32_t bar = ptx::shared_address(&sm.q_full), to = ptx::shared_address(sm.q);
    const uint64_t policy = policy_evict_first();
    const int row = seg.q_first(r) * seg.p.heads, batch = seg.q_batch(r);
    ptx::mbarrier_arrive_expect(bar, sizeof(sm.q));
#pragma unroll
    for (int c = 0; c < Shape::kQBoxes; ++c) tma_load_3d(to + c * sizeof(sm.q[0]), &maps.q_nope, bar, policy, c * 64, row, batch);
    tma_load_3d(to + Shape::kQBoxes * sizeof(sm.q[0]), &maps.q_pe, bar, policy, rope_column(), row, batch);
  }
  __device__ __forceinline__ void keys(uint32_t n, int page, int at) const {
    if (!ptx::elect_one()) return;
    Block& block = sm.keys[n % Shape::kStages];
    const uint32_t bar = ptx::shared_address(&sm.full[n % Shape::kStages]);
    const uint64_t policy = policy_evict_first();
    ptx::mbarrier_arrive_expect(bar, sizeof(Block));
#pragma unroll 1
    for (int i = 0; i < Shape::kN; i += Shape::kBoxRows) {
#pragma unroll
      for (int c = 0; c < Shape::kBoxes; ++c)
        tma_load_3d(ptx::shared_address(block.latent[c]) + i * 128, &maps.ckv, bar, policy, c * Shape::kBoxColumns, at + i, page);
      tma_load_3d(ptx::shared_address(block.rope) + i * 128, &maps.kpe, bar, policy, rope_column(), at + i, page);
    }
  }

  __device__ __forceinline__ void run() {
    const Params& p = seg.p;
    const int lane = threadIdx.x & 31;
    uint32_t n = 0, requests = 0;
#pragma unroll 1
    for (int r = seg.part.r0; r <= seg.part.r1; ++r) {
      const int count = seg.count(r);
      if (count <= 0) continue;
      if (requests > 0) meet(), mbarrier_wait(ptx::shared_address(&sm.q_taken), (requests - 1) & 1);
      queries(r);
      __syncwarp();
      ++requests;
      // A lane knows where one of 32 blocks lies, and asks for the page number of one of the next 32.
      const PageRow pages(p, r);
      const int first = seg.begin(r) * Shape::kN;
      const auto page_of = [&](int i) {
        return !p.page_table ? r : i < count ? pages.page(p, (first + i * Shape::kN) / p.page_size) : 0;
      };
      int next = page_of(lane), page = 0, at = 0;
#pragma unroll 1
      for (int i = 0; i < count; ++i, ++n) {
        if (i % 32 == 0) page = next, at = (first + (i + lane) * Shape::kN) % p.page_size, next = page_of(i + 32 + lane);
        if (n >= Shape::kStages) meet(), sm.wait_used(n - Shape::kStages);
        keys(n, __shfl_sync(~0u, page, i % 32), __shfl_sync(~0u, at, i % 32));
        __syncwarp();
      }
    }
    meet();
  }
};

}  // namespace attile::cuda::mla_sm90::few_rows
