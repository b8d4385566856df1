// The kernel's compile-time shape (Traits), its shared memory, and a part's list of requests (Segments).
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/mla_decode/sm90/params.hpp"
#include "cuda/mla_decode/sm90/pipeline.cuh"
#include "cuda/mla_decode/sm90/requests.cuh"
#include "cuda/tile/element.cuh"

namespace attile::cuda::mla_sm90 {

// How the rope part meets the keys, and how keys are loaded.
enum class Rope { shared, heads };  // heads: a row of 16 columns for each head
// boxes by TMA: kN rows of one page; gathered: row by row, pages of any size; narrow: boxes of float8 latents, which are widened here
enum class Keys { boxes, gathered, narrow };

// L up to 64 * kLatentBoxes columns, shared rope up to 64 * kRopeBoxes (rope of heads: all their columns). kStages: key blocks in shared
// memory. More is not better where bytes are the limit: 2 of 64 or 72 KB beat 3, 3 of 36 KB beat 6 (docs/hopper-mla.md).
template <class Element_, int kLatentBoxes_, int kRopeBoxes_, int kStages, Rope kRope = Rope::shared, Keys kKeys = Keys::boxes>
struct Traits {
  using Element = Element_;
  static constexpr int kM = 64, kN = kRope == Rope::heads ? 32 : 64, kLatentBoxes = kLatentBoxes_, kRopeBoxes = kRopeBoxes_;
  static constexpr bool kHeadRope = kRope == Rope::heads, kGathered = kKeys == Keys::gathered, kNarrow = kKeys == Keys::narrow;
  using Wide = std::conditional_t<kNarrow, F16, Element>;  // of latents, of Q beside them and of P, as wgmma reads them
  // Keys that no box brings are asked for by a fourth warpgroup, the producers, which does nothing else.
  static constexpr bool kProducers = kGathered;
  static constexpr int kThreads = kProducers ? 512 : 384;
  // wgmma wants 24 to 30 registers beside its operands, else ptxas serialises it: left, right 128 + 26; score 32 + 26 and 16 a tile of Q.
  static constexpr int kScoreRegisters = kProducers ? 152 : 184, kOutRegisters = 160, kProducerRegisters = 40;
  static_assert(kScoreRegisters + 2 * kOutRegisters + (kProducers ? kProducerRegisters : 0) == (kProducers ? 4 * 128 : 3 * 168));
  // An instruction's registers must fit what threads start with: four warpgroups have 128 each, so O takes two instructions a k-step there.
  static constexpr int kOutPieces = kProducers ? 2 : 1;
  // One warp loads whole blocks in boxes of few rows, in the order of memory: faster where rows are short (docs/hopper-mla.md).
  static constexpr bool kOneLoader = kKeys == Keys::boxes && !kHeadRope && kLatentBoxes == 4;
  static constexpr int kBoxRows = kOneLoader ? 8 : kN;
  static constexpr int kBoxBytes = kN * 128;                                    // kN keys x 64 columns, 128-byte swizzle
  static constexpr int kAccS = kN / 2;                                          // accumulator registers of S
  static constexpr int kHalfBoxes = kLatentBoxes / 2, kOutN = kHalfBoxes * 64;  // columns of an output warpgroup
  // Q tiles of 64 columns in the score warpgroup's registers (16 each); the others in shared memory.
  static constexpr int kMaxRegisterTiles = kProducers ? 5 : kHeadRope ? 6 : 7;
  static constexpr int kRegisterTiles = kLatentBoxes < kMaxRegisterTiles ? kLatentBoxes : kMaxRegisterTiles;
  static constexpr int kLatentSharedTiles = kLatentBoxes - kRegisterTiles;
  static constexpr int kSharedTiles = kLatentSharedTiles + (kHeadRope ? 0 : kRopeBoxes);
  static constexpr int kQEntries = kM / kN;  // ring entries that Q takes at most
  // Shared memory: the most that a block may have; statistics, barriers and walks take less than the second figure.
  static constexpr int kShared = 232448, kSharedSmall = 3072;
  static constexpr int kRing = kShared - kSharedSmall - kSharedTiles * kM * 128;
  static constexpr int kRawStages = 2, kRawBytes = kNarrow ? kRawStages * kLatentBoxes * kBoxBytes / 2 : 0;
  static constexpr int kLatentBytes = kLatentBoxes * kBoxBytes, kRopeBytes = kRopeBoxes * kBoxBytes;
  static constexpr int kLatentStages = kStages;
  // Places for halves of latents. Gathered, five: two blocks and a half, for a half is asked for as soon as it has a place.
  static constexpr int kHalfPlaces = kGathered ? 2 * kStages + 1 : 2 * kStages;
  static constexpr int kRopeStages = kGathered ? kStages + 1 : kStages >= 3 && kKeys == Keys::boxes && kRing >= 3 * (kLatentBytes + kRopeBytes) ? 3 : 2;
  static_assert(!kOneLoader || kRopeStages == kStages);
  static_assert(kHalfPlaces * kLatentBytes / 2 + kRopeStages * kRopeBytes + kRawBytes <= kRing);
  // What is known of the ring before the first load.
  static constexpr int kFirst = kStages + (kNarrow ? kRawStages : 0);
  static_assert(kStages <= 6);  // a walk is kAhead entries ahead: at least three more
  // P(n) is published when S(n + 1) has issued so many of its k-steps; -1: before it begins. With a third block O(n) can wait so long.
  static constexpr int kPublishAt = kLatentBoxes == 8 && kStages == 3 && !kHeadRope && kKeys == Keys::boxes ? 27 : -1;
  // There P and rope keys have a place each, not two by turns, so that rope keys are asked for when S is through with those before, not when
  // O is with P. Who loads hears by named barriers that a place is free, and rope keys have a warp of their own: an mbarrier wakes 500 cycles
  // later.
  static constexpr bool kOwnPlaces = kPublishAt >= 0;
  static_assert(!kOwnPlaces || kRopeStages == 2);
  // Rows pass through shared memory on their way out; where products are the limit, what they pass through is wanted back at once.
  static constexpr bool kStaged = kPublishAt < 0;
  // Other rows are stored when their last block's place has been given back; float8 leaves no room for what is kept till then.
  static constexpr bool kKeeps = !kNarrow;
  static_assert(kKeeps || kStaged);
  // Bytes are the limit, and of a short call how soon they are asked for.
  static constexpr bool kBytesLimit = kKeys == Keys::boxes && kPublishAt < 0;
  // Loads are evict_first: what other kernels have left in L2 stays there, and need not be written back now. A part of so many blocks pushes
  // it out all the same, and is read faster without; 0: not looked at.
  static constexpr int kLongPart = kHeadRope ? 48 : 0;
  // What L2 fetches at a time; lines of two boxes where no other row tile reads them, too.
  static constexpr int kPromotion = kHeadRope ? 256 : 128;
  // A request of two parts is joined within a cluster of two blocks, where shared memory has room for half of a partial result.
  static constexpr int kLandingBytes = 4 * 32 * (kHalfBoxes * 8 + 1) * 16;
  static constexpr bool kPairs =
      kKeys == Keys::boxes && kStaged && kStages * kLatentBytes + kRopeStages * kRopeBytes + kLandingBytes <= kRing;
};

// The row maximum that exponents are taken against may lag behind by 2^kLag: only then is O rescaled. P stays under 2^kLag.
constexpr float kLag = 8;

constexpr int kEntries = 16, kAhead = 9;  // the ring of entries, and how far ahead of its warpgroup a walk is

// What the ring holds. at >= 0: keys, from row `at` of page `page` on.
// at = kQ - i: rows kN * i.. of the queries of request `page`.
struct Entry {
  int page, at;
};
constexpr int kEnd = -1, kQ = -2;

struct alignas(16) Walk {  // see walk.cuh
  int r, left, q_left, page_no, at;
};

// Float8 latents before they are widened, and when they are there.
template <class T>
struct Raw {
  uint8_t keys[T::kRawStages][2][T::kN * T::kOutN];
  uint64_t full[T::kRawStages][2];
  __device__ __forceinline__ void init() {
    for (auto& stage : full)
      for (uint64_t& bar : stage) ptx::mbarrier_init(ptx::shared_address(&bar), 1);
  }
  __device__ __forceinline__ uint32_t barrier(uint32_t m, int half) { return ptx::shared_address(&full[m % T::kRawStages][half]); }
  __device__ __forceinline__ void wait(uint32_t m, int half) { mbarrier_wait(barrier(m, half), m / T::kRawStages & 1); }
};
// What a row's latent scores are to be multiplied by: ckv_scale, and what its queries were multiplied by to be float16.
template <class T>
struct QueryScale {
  float back[T::kM];
};
// 1 / sum and lse, left's and right's own, until they store the rows; a lane reads what it wrote. In registers they would crowd the loop
// over blocks.
template <class T>
struct Kept {
  float inv_sum[2][T::kM], lse[2][T::kM];
  __device__ __forceinline__ void put(int half, int row, const float (&inv)[2], const float (&log2)[2]) {
#pragma unroll
    for (int e = 0; e < 2; ++e) inv_sum[half][row + e * 8] = inv[e], lse[half][row + e * 8] = log2[e];
  }
  __device__ __forceinline__ void get(int half, int row, float (&inv)[2], float (&log2)[2]) const {
#pragma unroll
    for (int e = 0; e < 2; ++e) inv[e] = inv_sum[half][row + e * 8], log2[e] = lse[half][row + e * 8];
  }
};
// What the cluster's other block has of the columns that this one joins, in the order of registers: a lane's accumulators, then its rows' lse
// and 1 / sum.
template <class T>
struct Landing {
  static constexpr int kPieces = T::kHalfBoxes * 8 + 1;
  float4 rows[4][kPieces][32];  // of each warp
  uint64_t full[4][T::kHalfBoxes];  // of eight pieces each; the last piece comes with the first
  __device__ __forceinline__ void init() {
    for (auto& bars : full)
      for (uint64_t& bar : bars) ptx::mbarrier_init(ptx::shared_address(&bar), 1);
  }
};
struct NoRaw {
  __device__ __forceinline__ void init() {}
};

template <class T>
struct alignas(1024) SharedStorage {
  uint8_t latent[T::kHalfPlaces][T::kHalfBoxes][T::kBoxBytes];  // a block's halves follow each other but where kHalfPlaces is odd
  // P(n) takes the place of block n's rope keys, which S(n) has used; kOwnPlaces: rope keys have the first, P the second.
  uint8_t rope[T::kRopeStages][T::kRopeBoxes][T::kBoxBytes];
  uint8_t q[T::kSharedTiles > 0 ? T::kSharedTiles : 1][T::kM * 128];
  [[no_unique_address]] std::conditional_t<T::kNarrow, Raw<T>, NoRaw> raw;
  float scale[T::kRopeStages][T::kM];  // exp2(old max - new max)
  float inv_sum[T::kRopeStages]
               [T::kM];              // written with a request's last block; as often as P, for the next request may end two entries later
  float lse[T::kRopeStages][T::kM];  // likewise, base 2
  [[no_unique_address]] std::conditional_t<T::kKeeps, Kept<T>, NoRaw> kept;
  [[no_unique_address]] std::conditional_t<T::kNarrow, QueryScale<T>, NoRaw> q_scale;
  [[no_unique_address]] std::conditional_t<T::kPairs, Landing<T>, NoRaw> landing;
  Pipeline<T::kHalfPlaces, T::kRopeStages, T::kGathered || T::kNarrow ? 128 : 1, T::kGathered ? 128 : 1, T::kOwnPlaces> pipe;
  Walk walk[2];                // left's and right's
  Entry entries[2][kEntries];  // block m at m % kEntries, written kAhead blocks ahead
  Part part;
  __device__ __forceinline__ uint8_t (*half_of(uint32_t n, int half))[T::kBoxBytes] {
    return pipe.kEven ? latent[half] + pipe.place(n, 0) * T::kHalfBoxes : latent[pipe.place(n, half)];
  }
  __device__ __forceinline__ volatile Entry& entry(int half, uint32_t n) { return entries[half][n % kEntries]; }
};

// The requests of a part, with this block's range of keys of each.
struct Segments {
  const Params& p;
  const volatile Part& part;  // in shared memory: reread at each use, so that it takes no registers in the loops
  int block_n, m_block;

  __device__ __forceinline__ int kv_len(int r) const { return kv_len_of(p, r); }
  __device__ __forceinline__ int q_len(int r) const { return p.packed ? q_len_of(p, r) : p.seqlen_q; }
  __device__ __forceinline__ int q_first(int r) const { return p.packed ? q_first_of(p, r) : 0; }
  __device__ __forceinline__ int q_batch(int r) const { return p.packed ? 0 : r; }
  __device__ __forceinline__ int rows(int r) const { return q_len(r) * p.heads; }

  __device__ __forceinline__ int blocks(int r) const { return (kv_len(r) + block_n - 1) / block_n; }
  __device__ __forceinline__ int begin(int r) const { return r == part.r0 ? part.b0 : 0; }
  __device__ __forceinline__ int end(int r) const { return r == part.r1 ? part.b1 : blocks(r); }
  // Blocks of r here; none for a row tile that r does not reach.
  __device__ __forceinline__ int count(int r) const {
    if (p.packed && rows(r) <= m_block * 64) return 0;
    return r == part.r0 ? part.left0 : end(r);
  }
  // How many of this part's last blocks of r hold keys that some row does not see.
  __device__ __forceinline__ int masked(int r) const {
    const int seen = kv_len(r) - (p.causal ? q_len(r) - 1 : 0);  // by every row
    return end(r) - max(seen, 0) / block_n;
  }
  // -1: this part has all of the request; else where its partial result goes.
  __device__ __forceinline__ int slot(int r) const {
    const int parts = r == part.r0 ? part.count0 : r == part.r1 ? part.count1 : 1;
    return parts == 1 ? -1 : 2 * static_cast<int>(blockIdx.y) + (r != part.r0);
  }
  // How many ring entries the queries of this row tile take.
  __device__ __forceinline__ int q_entries(int r) const { return (min(64, rows(r) - m_block * 64) + block_n - 1) / block_n; }

  // Row `row` of request r in out and lse, in elements.
  __device__ __forceinline__ int64_t out_at(int r, int row) const {
    const int i = row / p.heads;
    return q_batch(r) * p.out_batch + (q_first(r) + i) * p.out_token + (row - i * p.heads) * p.out_head;
  }
  __device__ __forceinline__ void store_lse(int r, int row, float log2) const {
    if (!p.lse) return;
    const int i = row / p.heads;
    p.lse[q_batch(r) * p.lse_batch + (q_first(r) + i) * p.lse_token + (row - i * p.heads) * p.lse_head] = log2 * p.lse_scale;
  }
};

}  // namespace attile::cuda::mla_sm90
