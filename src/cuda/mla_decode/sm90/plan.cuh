// Split planning on the device: no host sync, so that lengths may change between replays of a CUDA graph.
//
// The requests lie end to end on an axis of costs: blocks, and what beginning a request costs. Cut evenly into n parts the axis is divided
// well where splits are cheap, but 128 equal requests on 132 multiprocessors want to stay whole. So some n are tried side by side, and the
// one whose dearest part is cheapest wins, a split counted as kSplitCost blocks. Everything is a binary search in prefix sums: one thread
// that walks over 128 requests takes 25 to 30 us.
#pragma once

#include <cstdint>

#include "cuda/mla_decode/sm90/params.hpp"

namespace attile::cuda::mla_sm90 {

struct Cut {  // before block b of request r
  int r, b;
};

// The axis cut into n parts. Costs are in blocks.
struct Axis {
  const int* prefix;  // [batch + 1]: where request r begins
  int batch, begin_cost, n;
  int budget, rest, snap, split_cost;

  static constexpr int kMaxBeginCost = 4, kSplitCost = 5;

  __device__ __forceinline__ Axis(const int* sums, int requests, int begin, int parts) : prefix(sums), batch(requests), begin_cost(begin), n(parts) {
    const int total = prefix[batch];
    budget = total / n, rest = total - budget * n;
    snap = min(kSplitCost, budget / 6), split_cost = min(kSplitCost, max(1, budget / 4));
  }
  __device__ __forceinline__ int blocks(int r) const { return max(prefix[r + 1] - prefix[r] - begin_cost, 0); }

  // The end of part p - 1, the beginning of part p. A piece that is less than a split costs is left to the neighbour.
  __device__ __forceinline__ Cut cut(int p) const {
    if (p >= n) return {batch, 0};
    const int at = p * budget + p * rest / n;
    int low = 0, high = batch;  // the last request that begins at or before `at`
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (prefix[middle] <= at) low = middle;
      else high = middle - 1;
    }
    if (p == 0) return {0, 0};
    if (low == batch) return {batch, 0};
    const int b = at - prefix[low] - begin_cost;
    if (b <= snap) return {low, 0};
    if (blocks(low) - b <= snap) return {low + 1, 0};
    return {low, b};
  }
  __device__ __forceinline__ int cost(Cut from, Cut to) const {
    const bool begins = from.b > 0, ends = to.b > 0;
    const int pieces = begins && ends && from.r == to.r ? 1 : begins + ends;
    return prefix[to.r] + (ends ? to.b + begin_cost : 0) - prefix[from.r] - (begins ? from.b : 0) + pieces * split_cost;
  }
};

// How many parts candidate i has: all; so many that each request has as many as the others; so many that each has k or k + 1 requests, k
// being the fewest that fit.
constexpr int kCandidates = 4;
__device__ __forceinline__ int candidate(int i, int parts, int requests, int total) {
  if (i == 0 || requests == 0) return min(parts, max(total, 1));
  if (i == 1) return requests <= parts ? min(parts / requests * requests, max(total, 1)) : 1;
  const int k = (requests + parts - 1) / parts + (i - 2);
  return (requests + k - 1) / k;
}

}  // namespace attile::cuda::mla_sm90
