// Split planning, by every block for itself at the kernel's beginning: no host sync and no other launch, so that lengths may change between
// replays of a CUDA graph.
//
// The requests lie end to end on an axis of costs: blocks, and what beginning a request costs. Cut evenly into n parts the axis is divided
// well where splits are cheap, but 128 equal requests on 132 multiprocessors want to stay whole. So some n are tried side by side, and the
// one whose dearest part is cheapest wins, a split counted as kSplitCost blocks. Everything is a binary search in prefix sums: one thread
// that walks over 128 requests takes 25 to 30 us, a kernel of its own 7. Requests of one length need no axis.
#pragma once

#include <cooperative_groups.h>

#include <utility>

#include "cuda/mla_decode/sm90/params.hpp"
#include "cuda/mla_decode/sm90/ptx.cuh"
#include "cuda/mla_decode/sm90/requests.cuh"
#include "cuda/tile/element.cuh"

namespace attile::cuda::mla_sm90 {

__device__ __forceinline__ float sink_at(const Params& p, int head, int i) {
  const char* at = p.sinks + head * p.sink_head + i * p.sink_next;
  switch (p.sink_dtype) {
    case DType::bf16:
      return Bf16::unpack(*reinterpret_cast<const uint16_t*>(at)).x;
    case DType::f16:
      return F16::unpack(*reinterpret_cast<const uint16_t*>(at)).x;
    case DType::f32:
      return *reinterpret_cast<const float*>(at);
    default:
      return static_cast<float>(*reinterpret_cast<const double*>(at));
  }
}

// ---- the axis

struct Cut {  // before block b of request r
  int r, b;
};

// Cut into n parts. Costs are in blocks.
struct Axis {
  const int* prefix;  // [batch + 1]: where request r begins
  int batch, begin_cost, n;
  int budget, rest, snap, split_cost;

  static constexpr int kMaxBeginCost = 4, kSplitCost = 5;
  static __device__ __forceinline__ int cost_of_split(int budget) { return min(kSplitCost, max(1, budget / 4)); }

  __device__ __forceinline__ Axis(const int* sums, int requests, int begin, int parts)
      : prefix(sums), batch(requests), begin_cost(begin), n(parts) {
    const int total = prefix[batch];
    budget = total / n, rest = total - budget * n;
    snap = min(kSplitCost, budget / 6), split_cost = cost_of_split(budget);
  }
  __device__ __forceinline__ int blocks(int r) const { return max(prefix[r + 1] - prefix[r] - begin_cost, 0); }

  // The end of part p - 1, the beginning of part p. A piece that is less than a split costs is left to the neighbour.
  __device__ __forceinline__ Cut cut(int p) const {
    const int at = p * budget + p * rest / n;
    int low = 0, high = batch;  // the last request that begins at or before `at`
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (prefix[middle] <= at)
        low = middle;
      else
        high = middle - 1;
    }
    if (p == 0) return {0, 0};
    if (p >= n || low == batch) return {batch, 0};
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

// ---- a block's plan

struct PlanStorage {
  int blocks[32], requests[32], sums[32], most[kCandidates], parts[kCandidates];
  Cut cuts[kCandidates][kMaxParts + 1];
  int prefix[kMaxBatch + 1];
};

// The sum over the threads before, and this one; all threads call it. sums: [32].
__device__ __forceinline__ int block_prefix(int x, int* sums) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int y = __shfl_up_sync(~0u, x, d);
    if (lane >= d) x += y;
  }
  __syncthreads();  // the sums of the last call have been read
  if (lane == 31) sums[warp] = x;
  __syncthreads();
  return x + __reduce_add_sync(~0u, lane < warp ? sums[lane] : 0);
}

// All requests have `each` blocks: whole ones, as many a part, or as many parts a request. False where cuts across requests are better.
template <bool kPairs>
__device__ __forceinline__ bool plan_equal(const Params& p, Part& part, int each) {
  const int y = blockIdx.y, budget = each * p.batch / p.parts, split_cost = Axis::cost_of_split(budget);
  const int pieces = min(p.parts_a_request, each), cost = pieces > 1 ? (each + pieces - 1) / pieces + split_cost : p.requests_a_part * each;
  if (cost > budget + 1 + 2 * split_cost) return false;
  if (threadIdx.x != 0) return true;
  if (pieces > 1) {
    const int r = y / pieces, i = y - r * pieces, length = each / pieces, rest = each - length * pieces;
    const int begin = i * length + i * rest / pieces, end = (i + 1) * length + (i + 1) * rest / pieces;
    part.r0 = r, part.b0 = begin, part.r1 = r < p.batch ? r : -1, part.b1 = end, part.left0 = end - begin;
    part.before0 = i, part.count0 = pieces, part.count1 = pieces, part.first_slot0 = 2 * (y - i);
    if (kPairs && p.clusters && pieces == 2) part.pair = true, part.count0 = part.count1 = 1;  // as if it were whole: it has no slot
  } else {
    const int r = y * p.requests_a_part;
    part.r0 = r, part.b0 = 0, part.r1 = min(r + p.requests_a_part, p.batch) - 1, part.b1 = each, part.left0 = each;
    part.before0 = 0, part.count0 = 1, part.count1 = 1, part.first_slot0 = 2 * y;
  }
  return true;
}

// own_len, first_len: of request threadIdx.x, of request 0. part: this block's, in shared memory; written when the threads meet next.
template <int kThreads, bool kPairs = false>
__device__ __forceinline__ void make_plan(const Params& p, PlanStorage& sm, Part& part, int own_len, int first_len) {
  const int t = threadIdx.x, lane = t & 31, warp = t / 32;
  const auto blocks_in = [&](int len) { return (len + p.block_n - 1) / p.block_n; };
  const auto blocks_of = [&](int b) { return b < p.batch ? blocks_in(kv_len_of(p, b)) : 0; };
  const int own = blocks_in(own_len), first = blocks_in(first_len);
  if (kPairs && t == 0) part.pair = false;
  bool differs = t < p.batch && own != first;
#pragma unroll 1
  for (int b = t + kThreads; b < p.batch; b += kThreads) differs |= blocks_of(b) != first;
  if (!__syncthreads_or(differs) && plan_equal<kPairs>(p, part, first)) return;

  // How many blocks there are, and requests that have any.
  int total = own, requests = own > 0;
#pragma unroll 1
  for (int b = t + kThreads; b < p.batch; b += kThreads) {
    const int blocks = blocks_of(b);
    total += blocks, requests += blocks > 0;
  }
  total = __reduce_add_sync(~0u, total), requests = __reduce_add_sync(~0u, requests);
  if (lane == 0) sm.blocks[warp] = total, sm.requests[warp] = requests;
  if (t < kCandidates) sm.most[t] = 0;
  __syncthreads();
  total = __reduce_add_sync(~0u, lane < kThreads / 32 ? sm.blocks[lane] : 0);
  requests = __reduce_add_sync(~0u, lane < kThreads / 32 ? sm.requests[lane] : 0);

  // The axis. What beginning a request costs is less where parts are short; empty requests have no place.
  const int begin_cost = min(Axis::kMaxBeginCost, total / (16 * p.parts));
  int sum = 0;
#pragma unroll 1
  for (int first = 0; first < p.batch; first += kThreads) {
    const int blocks = first == 0 ? own : blocks_of(first + t);
    const int end = sum + block_prefix(blocks + (blocks > 0 ? begin_cost : 0), sm.sums);
    if (first + t < p.batch) sm.prefix[first + t + 1] = end;
    sum += __reduce_add_sync(~0u, lane < kThreads / 32 ? sm.sums[lane] : 0);
  }
  if (t == 0) sm.prefix[0] = 0;
  total += requests * begin_cost;
  __syncthreads();

  // How many parts: each of some warps tries a number.
  constexpr int kTeam = kThreads / 32 / kCandidates * 32;
  const int c = warp % kCandidates, y0 = warp / kCandidates * 32 + lane;
  {
    const int n = candidate(c, p.parts, requests, total);
    if (t < kCandidates * 32 && lane == 0) sm.parts[c] = n;
    const Axis axis(sm.prefix, p.batch, begin_cost, n);
#pragma unroll 1
    for (int y = y0; y <= n; y += kTeam) sm.cuts[c][y] = axis.cut(y);
    __syncthreads();
    int most = 0;
#pragma unroll 1
    for (int y = y0; y < n; y += kTeam) most = max(most, axis.cost(sm.cuts[c][y], sm.cuts[c][y + 1]));
    most = __reduce_max_sync(~0u, most);
    if (lane == 0) atomicMax(&sm.most[c], most);
    __syncthreads();
  }
  int best = 0;
  for (int i = 1; i < kCandidates; ++i)
    if (sm.most[i] <= sm.most[best]) best = i;
  const int n = sm.parts[best], y = blockIdx.y;
  const Cut* cut = sm.cuts[best];

  // This block's part.
  if (y >= n || (cut[y].r == cut[y + 1].r && cut[y].b == cut[y + 1].b)) {
    if (t == 0) part.r0 = 0, part.r1 = -1;
    return;
  }
  const Cut from = cut[y], to = cut[y + 1];
  const int r1 = to.b > 0 ? to.r : to.r - 1;
  if (t == 0 && p.page_table) touch(page_entry(p, from.r, from.b * p.block_n / p.page_size));  // the walks ask for it next
  // Each cut within a request makes one part more of it.
  static_assert(kMaxParts < kThreads);
  const Cut mine = t < n ? cut[t] : Cut{-1, 0};
  const int before0 = __syncthreads_count(mine.b > 0 && mine.r == from.r && t <= y);
  const int count0 = 1 + __syncthreads_count(mine.b > 0 && mine.r == from.r);
  const int count1 = 1 + __syncthreads_count(mine.b > 0 && mine.r == r1);
  if (t == 0) {
    const auto blocks = [&](int r) { return max(sm.prefix[r + 1] - sm.prefix[r] - begin_cost, 0); };
    part.r0 = from.r, part.b0 = from.b, part.r1 = r1;
    part.b1 = to.b > 0 ? to.b : blocks(r1);
    part.left0 = (r1 == from.r ? part.b1 : blocks(from.r)) - from.b;
    part.before0 = before0, part.count0 = count0, part.count1 = count1;
    part.first_slot0 = 2 * (y - before0) + (cut[y - before0].r != from.r);
  }
}

// ---- what all blocks read of each other

// The page table into the second cache, while nobody knows yet who reads which of it: each block's share.
template <int kThreads>
__device__ __forceinline__ void prefetch_table(const Params& p) {
  if (!p.page_table) return;
  const int64_t rows = p.page_begin.data ? 1 : p.batch, bytes = (rows - 1) * p.table_row + p.table_entries * p.table_entry;
  const int64_t at = ((blockIdx.y * gridDim.x + blockIdx.x) * kThreads + threadIdx.x) * int64_t{128};
  if (at < bytes) prefetch_l2(p.page_table + at);
}

// Not inline: it would stand, rarely used, in the way of the first load.
inline __device__ __noinline__ void sum_sinks(const Params& p, int first, int step) {
#pragma unroll 1
  for (int h = first; h < p.heads; h += step) {
    float high = -INFINITY, total = 0.f;
#pragma unroll 1
    for (int i = 0; i < p.sink_count; ++i) high = fmaxf(high, sink_at(p, h, i));
#pragma unroll 1
    for (int i = 0; i < p.sink_count && high > -INFINITY; ++i) total += expf(sink_at(p, h, i) - high);
    p.sink_log2[h] = high == -INFINITY ? -INFINITY : high * 1.44269504f + log2f(total);
  }
}

// This block's share of what others read behind the grid's barrier: sums of sinks, counters at zero.
template <int kThreads>
__device__ __forceinline__ void write_shared_records(const Params& p) {
  const int first = (blockIdx.y * gridDim.x + blockIdx.x) * kThreads + threadIdx.x, step = gridDim.x * gridDim.y * kThreads;
#pragma unroll 1
  for (int i = first; i < p.batch * p.tiles * 2; i += step) p.arrived[i] = 0;
  if (p.sinks) sum_sinks(p, first, step);
}

// The barrier of the cooperative grid, at which blocks arrive when they have planned and wait when their first loads are under way.
class Others {
 public:
  __device__ __forceinline__ Others() : arrived_(cooperative_groups::this_grid().barrier_arrive()) {}
  __device__ __forceinline__ void wait() { cooperative_groups::this_grid().barrier_wait(std::move(arrived_)); }

 private:
  cooperative_groups::grid_group::arrival_token arrived_;
};

}  // namespace attile::cuda::mla_sm90
