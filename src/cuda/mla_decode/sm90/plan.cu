// The plan kernel: one block. It clamps what index arrays say, clears counters, sums up sinks, and cuts the work into parts (plan.cuh).
#include "cuda/mla_decode/sm90/plan.cuh"

#include "cuda/device.hpp"
#include "cuda/mla_decode/sm90/plan.hpp"
#include "cuda/mla_decode/sm90/ptx.cuh"

namespace attile::cuda::mla_sm90 {
namespace {

constexpr int kThreads = kCandidates * kMaxParts;

__device__ __forceinline__ int64_t index_at(const Indices& x, int64_t i) {
  const char* at = x.data + i * x.stride;
  return x.wide ? *reinterpret_cast<const int64_t*>(at) : *reinterpret_cast<const int32_t*>(at);
}
__device__ __forceinline__ int clamped(int64_t x, int low, int high) {
  return static_cast<int>(max(min(x, static_cast<int64_t>(high)), static_cast<int64_t>(low)));
}

__device__ __forceinline__ Request request(const Params& p, int b) {
  Request r{p.kv_most, 0, p.seqlen_q, 0};
  if (p.kv_lens.data) r.kv_len = clamped(index_at(p.kv_lens, b), 0, p.kv_most);
  if (p.cu_seqlens_q.data) {
    r.q_first = clamped(index_at(p.cu_seqlens_q, b), 0, p.q_tokens);
    r.q_len = clamped(index_at(p.cu_seqlens_q, b + 1), r.q_first, min(p.q_tokens, r.q_first + p.seqlen_q)) - r.q_first;
  }
  if (p.page_begin.data) r.page_begin = clamped(index_at(p.page_begin, b), 0, max(p.table_entries - 1, 0));
  return r;
}

__device__ __forceinline__ float sink(const Params& p, int head, int i) {
  const char* at = p.sinks + head * p.sink_head + i * p.sink_next;
  switch (p.sink_dtype) {
    case DType::bf16: return Bf16::unpack(*reinterpret_cast<const uint16_t*>(at)).x;
    case DType::f16: return F16::unpack(*reinterpret_cast<const uint16_t*>(at)).x;
    case DType::f32: return *reinterpret_cast<const float*>(at);
    default: return static_cast<float>(*reinterpret_cast<const double*>(at));
  }
}

// The last i from low to high for which holds(i), which holds for low and for none after one for which it does not.
template <class Predicate>
__device__ __forceinline__ int last_where(int low, int high, Predicate holds) {
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (holds(middle)) low = middle;
    else high = middle - 1;
  }
  return low;
}

// The sum over the threads before, and this one; all threads call it. sums: [32].
__device__ __forceinline__ int block_prefix(int x, int* sums) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  for (int d = 1; d < 32; d *= 2) {
    const int y = __shfl_up_sync(~0u, x, d);
    if (lane >= d) x += y;
  }
  __syncthreads();  // the sums of the last call have been read
  if (lane == 31) sums[warp] = x;
  __syncthreads();
  const int others = lane < warp ? sums[lane] : 0;
  return x + __reduce_add_sync(~0u, others);
}

__global__ void __launch_bounds__(kThreads) plan_kernel(const __grid_constant__ Params p) {
  static_assert(kThreads == 1024 && kCandidates == 4);
  launch_dependents();
  extern __shared__ int prefix[];  // [batch + 1]
  __shared__ int sums[32], nonempty[32], most[kCandidates];
  __shared__ Cut cuts[kCandidates][kMaxParts + 1];
  const int t = threadIdx.x;

  // ---- the requests: prefix sums of their blocks, and of those that have any
  int blocks_before = 0, requests = 0;
  for (int first = 0; first < p.batch; first += kThreads) {
    const int b = first + t;
    int blocks = 0;
    if (b < p.batch) {
      const Request r = request(p, b);
      p.request[b] = r;
      blocks = (r.kv_len + p.block_n - 1) / p.block_n;
    }
    const int sum = blocks_before + block_prefix(blocks, sums);
    if (b < p.batch) prefix[b + 1] = sum;
    requests += __syncthreads_count(blocks > 0);
    blocks_before = prefix[min(first + kThreads, p.batch)];
  }
  if (t < kCandidates) most[t] = 0;
  if (t == 0) prefix[0] = 0;
  for (int64_t i = t; i < static_cast<int64_t>(p.batch) * p.tiles * 2; i += kThreads) p.arrived[i] = 0;
  if (p.sinks)
    for (int h = t; h < p.heads; h += kThreads) {
      float high = -INFINITY, total = 0.f;
      for (int i = 0; i < p.sink_count; ++i) high = fmaxf(high, sink(p, h, i));
      for (int i = 0; i < p.sink_count && high > -INFINITY; ++i) total += expf(sink(p, h, i) - high);
      p.sink_log2[h] = high == -INFINITY ? -INFINITY : high * 1.44269504f + log2f(total);
    }

  // ---- what beginning a request costs, added: less where parts are short. Empty requests have no place on the axis.
  const int begin_cost = min(Axis::kMaxBeginCost, blocks_before / (16 * p.parts));
  int before = 0;
  for (int first = 0; begin_cost > 0 && first < p.batch; first += kThreads) {
    const int b = first + t;
    const int earlier = before + block_prefix(b < p.batch && p.request[b].kv_len > 0, nonempty);
    if (b < p.batch) prefix[b + 1] += earlier * begin_cost;
    before += __syncthreads_count(b < p.batch && p.request[b].kv_len > 0);
  }
  __syncthreads();

  // ---- how many parts: each quarter of the threads tries a number
  const int c = t / kMaxParts, y = t % kMaxParts;
  {
    const int n = candidate(c, p.parts, requests, prefix[p.batch]);
    const Axis axis(prefix, p.batch, begin_cost, n);
    if (y <= n) cuts[c][y] = axis.cut(y);
    if (y == 0) cuts[c][n] = {p.batch, 0};
    __syncthreads();
    const int cost = y < n ? axis.cost(cuts[c][y], cuts[c][y + 1]) : 0;
    const int warp_most = __reduce_max_sync(~0u, cost);
    if (t % 32 == 0) atomicMax(&most[c], warp_most);
    __syncthreads();
  }
  int best = 0;
  for (int i = 1; i < kCandidates; ++i)
    if (most[i] <= most[best]) best = i;
  const int n = candidate(best, p.parts, requests, prefix[p.batch]);
  if (t >= p.parts) return;

  // ---- the parts
  const Cut* cut = cuts[best];
  Part part{};
  part.r1 = -1;
  if (t < n) {
    const Cut from = cut[t], to = cut[t + 1];
    const Axis axis(prefix, p.batch, begin_cost, n);
    part.r0 = from.r, part.b0 = from.b;
    part.r1 = to.b > 0 ? to.r : to.r - 1;
    if (from.r == to.r && from.b == to.b) part.r1 = part.r0 - 1;
    if (part.r1 >= part.r0) {
      part.b1 = to.b > 0 ? to.b : axis.blocks(part.r1);
      part.left0 = (part.r1 == part.r0 ? part.b1 : axis.blocks(part.r0)) - part.b0;
      part.request0 = p.request[part.r0];
      // The parts that have blocks of r0, of r1: from the last that does not begin within r0 to the last that does not begin behind it.
      const int first = last_where(0, t, [&](int i) { return cut[i].r < part.r0 || (cut[i].r == part.r0 && cut[i].b == 0); });
      const int last0 = last_where(t, n - 1, [&](int i) { return cut[i].r <= part.r0; });
      const int last1 = last_where(t, n - 1, [&](int i) { return cut[i].r <= part.r1; });
      part.before0 = t - first, part.count0 = last0 - first + 1, part.count1 = last1 - t + 1;
      part.first_slot0 = 2 * first + (cut[first].r != part.r0);
    }
  }
  p.part[t] = part;
}

}  // namespace

void launch_plan(const Params& p, void* stream) {
  const size_t bytes = static_cast<size_t>(p.batch + 1) * sizeof(int);
  if (bytes > (32 << 10))
    check(cudaFuncSetAttribute(plan_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxBatch * static_cast<int>(sizeof(int))),
          "preparing the plan of mla_decode");
  plan_kernel<<<1, kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(p);
  check_launch("launching the plan of mla_decode");
}

}  // namespace attile::cuda::mla_sm90
