// Which tiles a block has. Every block finds that out for itself at the kernel's beginning, from lengths on the device: no host sync and no
// other launch, so that lengths may change between replays of a CUDA graph.
//
// A unit is a key head of a sequence. The tiles of all units lie end to end, sequence by sequence and head by head, and are cut evenly: a
// part costs little to join (its rows x dim floats, as much as 8 to 64 keys), so that nothing but tiles needs to be balanced. But where
// parts of whole units are nearly as even (256 units of one length on 264 blocks), they are taken: nothing is to be joined then. What a
// unit has to show even without keys (zeros, sinks) is computed in a tile of its own that reads nothing.
#pragma once

#include "cuda/decode/sm90/traits.cuh"
#include "cuda/generic/schedule.cuh"
#include "cuda/mla_decode/sm90/plan.cuh"

namespace attile::cuda::decode_sm90 {

using generic::Band;

// The last i from low to high for which holds(i), which holds for low and for none after one for which it does not.
template <class Predicate>
__device__ __forceinline__ int last_where(int low, int high, Predicate holds) {
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (holds(middle))
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// The keys of a sequence that any query sees, in tiles.
struct Keys {
  Band band;
  int begin, end;    // keys
  int first, tiles;  // tiles: at least one
};

template <int kN>
__device__ __forceinline__ Keys keys_of(const generic::ForwardParams& f, int b) {
  int start, seqlen_k;
  generic::sequence_rows(f.k_lengths, b, start, seqlen_k);
  const int shift = f.bottom_right ? seqlen_k - f.q_lengths.rows : 0;
  Keys k;
  k.band = {seqlen_k, shift - f.left, shift + f.right};
  k.begin = k.band.begin(0), k.end = k.band.end(f.q_lengths.rows - 1);
  k.first = k.begin / kN;
  k.tiles = max(1, (k.end + kN - 1) / kN - k.first);
  return k;
}

// The tiles of all units, cut into parts.
struct Axis {
  static constexpr int kLeastTiles = 4, kSnap = 2, kUneven = 16;  // kUneven: whole units may be longer than even parts by a share of that

  const int* prefix;  // [batch + 1]: tiles of one head of the sequences before
  int batch, heads, total, parts, budget, rest, snap;
  int units;  // of a part; 0: parts are cut evenly

  struct Spot {
    int b, h, at, tiles;  // tile `at` of the unit's
  };

  __device__ __forceinline__ Axis(const PlanStorage& plan, const generic::ForwardParams& f, int blocks)
      : prefix(plan.prefix), batch(f.batch), heads(f.heads_k), total(plan.prefix[f.batch] * f.heads_k) {
    units = (batch * heads + blocks - 1) / blocks;
    if (static_cast<int64_t>(units) * plan.longest * blocks > total + total / kUneven) units = 0;
    // Not so many that parts are shorter than it takes to join them, unless whole units are.
    parts = units ? (batch * heads + units - 1) / units : max(1, min(blocks, max(batch * heads, total / kLeastTiles)));
    budget = total / parts, rest = total - budget * parts, snap = min(kSnap, budget / 8);
  }
  __device__ __forceinline__ Spot spot(int x) const {
    Spot s;
    s.b = last_where(0, batch - 1, [&](int i) { return prefix[i] * heads <= x; });
    s.tiles = prefix[s.b + 1] - prefix[s.b];
    s.at = x - prefix[s.b] * heads;
    s.h = s.at / s.tiles;
    s.at -= s.h * s.tiles;
    return s;
  }
  // Where part y begins. So close to the end of a unit it is that end.
  __device__ __forceinline__ int cut(int y) const {
    if (y >= parts) return total;
    if (units) {
      const int unit = y * units, b = unit / heads;
      return prefix[b] * heads + (unit - b * heads) * (prefix[b + 1] - prefix[b]);
    }
    const int x = y * budget + y * rest / parts;
    const Spot s = spot(x);
    return s.at <= snap ? x - s.at : s.tiles - s.at <= snap ? x + s.tiles - s.at : x;
  }
  // The part that has tile x.
  __device__ __forceinline__ int owner(int x) const {
    int y = min(parts - 1, static_cast<int>(static_cast<int64_t>(x) * parts / total));
    while (cut(y) > x) --y;
    while (cut(y + 1) <= x) ++y;
    return y;
  }
};

// Prefix sums, by all threads.
template <class T>
__device__ __forceinline__ void sum_tiles(const generic::ForwardParams& f, PlanStorage& plan) {
  int total = 0;
  if (threadIdx.x == 0) plan.prefix[0] = plan.longest = 0;
#pragma unroll 1
  for (int first = 0; first < f.batch; first += T::kThreads) {
    const int b = first + threadIdx.x;
    const int tiles = b < f.batch ? keys_of<T::kN>(f, b).tiles : 0, sum = total + mla_sm90::block_prefix(tiles, plan.sums);
    const int longest = __reduce_max_sync(~0u, tiles);
    if (threadIdx.x % 32 == 0) atomicMax(&plan.longest, longest);
    if (b < f.batch) plan.prefix[b + 1] = sum;
    __syncthreads();
    total = plan.prefix[min(first + T::kThreads, f.batch)];
  }
}

// What the loads need, by one thread: where this block's part begins and how long it is.
__device__ __forceinline__ void find_part(const Axis& axis, Part& part) {
  const int y = blockIdx.x, begin = y < axis.parts ? axis.cut(y) : axis.total, end = axis.cut(y + 1);
  part.tiles = max(0, end - begin);
  const Axis::Spot s = axis.spot(part.tiles ? begin : 0);
  part.b = s.b, part.h = s.h, part.at = s.at;
}

// What the join needs, by two threads: which blocks have parts of the unit of tile x, this block's first or last.
__device__ __forceinline__ Shared find_shared(const Axis& axis, int x) {
  const int y = blockIdx.x;
  const Axis::Spot s = axis.spot(x);
  const int begin = x - s.at, first = axis.owner(begin), last = axis.owner(begin + s.tiles - 1);
  return {s.b, s.h, last - first + 1, y - first, 2 * first + (axis.cut(first) < begin), 2 * (first + 1)};
}
__device__ __forceinline__ void find_shared_units(const Axis& axis, Part& part, int which) {
  const int begin = axis.cut(blockIdx.x), end = begin + part.tiles;
  if (which == 0) {
    part.first = find_shared(axis, begin);
  } else {
    const Axis::Spot s = axis.spot(end - 1);
    part.last = end - 1 - s.at > begin ? find_shared(axis, end - 1) : Shared{0, 0, 1, 0, 0, 0};
  }
}

// A block's units one after another.
template <int kN>
struct Walk {
  const generic::ForwardParams& f;
  int b, h, at, left;
  Keys keys;
  int tiles;  // of this unit here

  __device__ __forceinline__ Walk(const generic::ForwardParams& params, const Part& part)
      : f(params), b(part.b), h(part.h), at(part.at), left(part.tiles), keys(keys_of<kN>(f, b)), tiles(min(keys.tiles - at, left)) {}
  __device__ __forceinline__ bool more() const { return left > 0; }
  __device__ __forceinline__ bool whole() const { return tiles == keys.tiles; }
  __device__ __forceinline__ int first_tile() const { return keys.first + at; }
  __device__ __forceinline__ void next() {
    left -= tiles;
    if (left == 0) return;
    at = 0;
    if (++h == f.heads_k) h = 0, keys = keys_of<kN>(f, ++b);
    tiles = min(keys.tiles, left);
  }
};

}  // namespace attile::cuda::decode_sm90
