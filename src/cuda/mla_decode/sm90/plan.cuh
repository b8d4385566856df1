// Split planning, by every block for itself at the kernel's beginning: no host sync and no other launch, so that lengths may change between
// replays of a CUDA graph.
//
// The requests lie end to end on an axis of costs: blocks, and what beginning a request costs. Cut evenly into n parts the axis is divided
// well where splits are cheap, but 128 equal requests on 132 multiprocessors want to stay whole. So some n are tried side by side, and the
// one whose dearest part is cheapest wins, a split counted as kSplitCost blocks. Everything is a binary search in prefix sums: one thread
// that walks over 128 requests takes 25 to 30 us, a kernel of its own 7, this 2.
#pragma once

#include <cooperative_groups.h>

#include <utility>

#include "cuda/mla_decode/sm90/params.hpp"
#include "cuda/mla_decode/sm90/ptx.cuh"
#include "cuda/tile/element.cuh"

namespace attile::cuda::mla_sm90 {

constexpr int kPlanThreads = 384;

// ---- what index arrays say, clamped to what the shapes allow

__device__ __forceinline__ int64_t index_at(const Indices& x, int64_t i) {
  const char* at = x.data + i * x.stride;
  return x.wide ? *reinterpret_cast<const int64_t*>(at) : *reinterpret_cast<const int32_t*>(at);
}
__device__ __forceinline__ int clamped(int64_t x, int low, int high) {
  return static_cast<int>(max(min(x, static_cast<int64_t>(high)), static_cast<int64_t>(low)));
}
__device__ __forceinline__ int kv_len_of(const Params& p, int b) {
  return p.kv_lens.data ? clamped(index_at(p.kv_lens, b), 0, p.kv_most) : p.kv_most;
}

__device__ __forceinline__ Request request_of(const Params& p, int b) {
  Request r{kv_len_of(p, b), 0, p.seqlen_q, 0};
  if (p.cu_seqlens_q.data) {
    r.q_first = clamped(index_at(p.cu_seqlens_q, b), 0, p.q_tokens);
    r.q_len = clamped(index_at(p.cu_seqlens_q, b + 1), r.q_first, min(p.q_tokens, r.q_first + p.seqlen_q)) - r.q_first;
  }
  if (p.page_begin.data) r.page_begin = clamped(index_at(p.page_begin, b), 0, max(p.table_entries - 1, 0));
  return r;
}

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

// This block's share of what all blocks read after the grid's barrier: requests, sinks, counters at zero.
__device__ __forceinline__ void write_shared_records(const Params& p) {
  const int first = (blockIdx.y * gridDim.x + blockIdx.x) * kPlanThreads + threadIdx.x, step = gridDim.x * gridDim.y * kPlanThreads;
  for (int b = first; b < p.batch; b += step) p.request[b] = request_of(p, b);
  for (int64_t i = first; i < static_cast<int64_t>(p.batch) * p.tiles * 2; i += step) p.arrived[i] = 0;
  if (!p.sinks) return;
  for (int h = first; h < p.heads; h += step) {
    float high = -INFINITY, total = 0.f;
    for (int i = 0; i < p.sink_count; ++i) high = fmaxf(high, sink_at(p, h, i));
    for (int i = 0; i < p.sink_count && high > -INFINITY; ++i) total += expf(sink_at(p, h, i) - high);
    p.sink_log2[h] = high == -INFINITY ? -INFINITY : high * 1.44269504f + log2f(total);
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

  __device__ __forceinline__ Axis(const int* sums, int requests, int begin, int parts)
      : prefix(sums), batch(requests), begin_cost(begin), n(parts) {
    const int total = prefix[batch];
    budget = total / n, rest = total - budget * n;
    snap = min(kSplitCost, budget / 6), split_cost = min(kSplitCost, max(1, budget / 4));
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
  int sums[32], most[kCandidates];
  Cut cuts[kCandidates][kMaxParts + 1];
  int prefix[kMaxBatch + 1];
};

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

// part: this block's, in shared memory.
__device__ __forceinline__ void make_plan(const Params& p, PlanStorage& sm, Part& part) {
  const int t = threadIdx.x, lane = t & 31, warp = t / 32;
  int* const prefix = sm.prefix;

  // Prefix sums of the requests' blocks, and how many have any.
  int total = 0, requests = 0;
#pragma unroll 1
  for (int first = 0; first < p.batch; first += kPlanThreads) {
    const int b = first + t;
    const int blocks = b < p.batch ? (kv_len_of(p, b) + p.block_n - 1) / p.block_n : 0;
    const int sum = total + block_prefix(blocks, sm.sums);
    if (b < p.batch) prefix[b + 1] = sum;
    requests += __syncthreads_count(blocks > 0);
    total = prefix[min(first + kPlanThreads, p.batch)];
  }
  if (t < kCandidates) sm.most[t] = 0;
  if (t == 0) prefix[0] = 0;

  // What beginning a request costs, added: less where parts are short. Empty requests have no place on the axis.
  const int begin_cost = min(Axis::kMaxBeginCost, total / (16 * p.parts));
  int before = 0;
#pragma unroll 1
  for (int first = 0; begin_cost > 0 && first < p.batch; first += kPlanThreads) {
    const int b = first + t;
    const bool some = b < p.batch && kv_len_of(p, b) > 0;
    const int earlier = before + block_prefix(some, sm.sums);
    if (b < p.batch) prefix[b + 1] += earlier * begin_cost;
    before += __syncthreads_count(some);
  }
  __syncthreads();
  total = prefix[p.batch];

  // How many parts: each of some warps tries a number.
  constexpr int kTeam = kPlanThreads / 32 / kCandidates * 32;
  const int c = warp % kCandidates, y0 = warp / kCandidates * 32 + lane;
  {
    const int n = candidate(c, p.parts, requests, total);
    const Axis axis(prefix, p.batch, begin_cost, n);
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
  const int n = candidate(best, p.parts, requests, total), y = blockIdx.y;
  const Cut* cut = sm.cuts[best];

  // This block's part.
  if (y >= n || (cut[y].r == cut[y + 1].r && cut[y].b == cut[y + 1].b)) {
    if (t == 0) part.r0 = 0, part.r1 = -1;
    return;
  }
  const Cut from = cut[y], to = cut[y + 1];
  const int r1 = to.b > 0 ? to.r : to.r - 1;
  if (t == 0) {
    const auto blocks = [&](int r) { return max(prefix[r + 1] - prefix[r] - begin_cost, 0); };
    part.r0 = from.r, part.b0 = from.b, part.r1 = r1;
    part.b1 = to.b > 0 ? to.b : blocks(r1);
    part.left0 = (r1 == from.r ? part.b1 : blocks(from.r)) - from.b;
    part.request0 = request_of(p, from.r);
  }
  // The parts that have blocks of r0, of r1: from the last that does not begin within r0 to the last that does not begin behind it.
  if (t == 32) {
    const int first = last_where(0, y, [&](int i) { return cut[i].r < from.r || (cut[i].r == from.r && cut[i].b == 0); });
    const int last = last_where(y, n - 1, [&](int i) { return cut[i].r <= from.r; });
    part.before0 = y - first, part.count0 = last - first + 1;
    part.first_slot0 = 2 * first + (cut[first].r != from.r);
  }
  if (t == 64) part.count1 = last_where(y, n - 1, [&](int i) { return cut[i].r <= r1; }) - y + 1;
}

// Everything that comes before the first load, by all threads: while the other blocks write their share of the records, this one plans.
// Not inline, for the registers of what follows.
inline __device__ __noinline__ void plan_block(const Params& p, PlanStorage& storage, Part& part) {
  const cooperative_groups::grid_group grid = cooperative_groups::this_grid();
  write_shared_records(p);
  auto arrived = grid.barrier_arrive();
  make_plan(p, storage, part);
  ptx::fence_async_proxy();  // TMA writes next where the plan was made
  grid.barrier_wait(std::move(arrived));
}

}  // namespace attile::cuda::mla_sm90
