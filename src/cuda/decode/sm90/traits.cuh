// The shape of a kernel, and what it has in shared memory.
#pragma once

#include "cuda/decode/sm90/params.hpp"
#include "cuda/decode/sm90/ring.cuh"

namespace attile::cuda::decode_sm90 {

// kRowWarps warps side by side have 16 query rows each; the others have other keys of the same tile. kSlots: of the ring; kBlocks: a
// multiprocessor.
template <class E, int D, int kRowWarps_, int kSlots_, int kWarps_, int kBlocks_>
struct Traits {
  using Element = E;
  static constexpr int kDim = D, kRowWarps = kRowWarps_, kSlots = kSlots_, kWarps = kWarps_, kBlocks = kBlocks_;
  static constexpr int kKeyWarps = kWarps / kRowWarps, kRows = 16 * kRowWarps;
  static constexpr int kN = D == 64 ? 128 : 64;  // keys a tile
  static constexpr int kKeys = kN / kKeyWarps;   // of a warp
  static constexpr int kStep = kKeys < 32 ? kKeys : 32;  // of them at a time
  static constexpr int kConsumers = 32 * kWarps, kThreads = kConsumers + 32;
  static constexpr int kBoxBytes = kN * 128, kSlotBytes = kN * D * 2;  // a tile is D / 64 boxes of 128-byte rows, swizzled
  static constexpr int kMergeRow = D + 8;  // floats: eight rows of float2 lie in different banks
  static constexpr int kBarrier = 1;       // of the consumers
};

// A unit that several blocks have parts of.
struct Shared {
  int b, h;
  int count, mine;        // parts, this block's place among them; count 1: not shared
  int first_slot, other;  // slot of the first part, of the second; then every second
  __device__ __forceinline__ int slot(int i) const { return i == 0 ? first_slot : other + 2 * (i - 1); }
};

// This block's run of tiles: from tile `at` of unit (b, h) on.
struct Part {
  int b, h, at, tiles;
  Shared first, last;  // its first unit, and its last if that is another one
};

struct PlanStorage {
  int sums[32];
  int longest;
  int prefix[kMaxBatch + 1];
};

template <class T>
struct SharedStorage {
  alignas(1024) uint8_t ring[T::kSlots][T::kSlotBytes];
  union {
    float out[T::kWarps * 16][T::kMergeRow];  // a row of a warp
    PlanStorage plan;                         // before the first unit ends
  };
  float2 state[T::kWarps * 16];
  Ring<T::kSlots, T::kWarps> barriers;
  Part part;
};

}  // namespace attile::cuda::decode_sm90
