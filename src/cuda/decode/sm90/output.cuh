// Results of several that had different keys of the same rows, joined: warps of a block, and blocks with parts of a unit.
//
//   max = max_i max_i;  sum = sum_i w_i sum_i;  o = sum_i w_i o_i,  w_i = 2^(max_i - max)      (o not yet divided by the sum)
//
// in a fixed order: the bits do not depend on who came last. Blocks leave their parts in device memory; when all blocks of the grid have,
// each joins every count-th row of the units that it shares.
#pragma once

#include "cuda/decode/sm90/plan.cuh"
#include "cuda/generic/softmax.cuh"

namespace attile::cuda::decode_sm90 {

// -inf: nothing was seen, or NaN alone, which stays.
__device__ __forceinline__ float weight_of(float own, float max) { return own == -INFINITY ? 1.f : ptx::exp2_approx(own - max); }

template <class T>
__device__ __forceinline__ void sync_consumers() {
  ptx::named_barrier_sync(T::kBarrier, T::kConsumers);
}

// Four columns of a row of the result.
template <class T>
__device__ __forceinline__ void store_result(const generic::ForwardParams& f, int b, int h, int row, int column, float4 o, float max,
                                             float sum) {
  const int position = row / f.group, head = h * f.group + row - position * f.group;
  const float joined = f.sinks ? generic::join_sinks(f, head, max, sum) : 1.f;
  const float factor = sum == 0.f ? 0.f : joined * generic::final_factor(f, sum);
  const bool seen = sum != 0.f;
  o = make_float4(seen ? o.x * factor : 0.f, seen ? o.y * factor : 0.f, seen ? o.z * factor : 0.f, seen ? o.w * factor : 0.f);
  char* out = f.out.data + b * f.out.batch + position * f.out.row + head * f.out.head + column * 2;
  if (f.out.granule == 16) {
    *reinterpret_cast<uint2*>(out) = make_uint2(T::Element::pack(o.x, o.y), T::Element::pack(o.z, o.w));
  } else {
    store_pair<typename T::Element>(out, o.x, o.y, true);
    store_pair<typename T::Element>(out + 4, o.z, o.w, true);
  }
  if (f.lse && column == 0) f.lse[b * f.lse_batch + head * f.lse_head + position * f.lse_row] = generic::final_lse(max, sum);
}

// Of rows first, first + kDistance, ... of the block's, kCount together: the columns from `column` on.
template <int kCount, int kDistance, class T>
__device__ __forceinline__ float4 merged(const SharedStorage<T>& sm, int first, int column, float& max, float& sum) {
  max = -INFINITY, sum = 0.f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) max = fmaxf(max, sm.state[first + i * kDistance].x);
  float4 o = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float2 state = sm.state[first + i * kDistance];
    const float4 x = *reinterpret_cast<const float4*>(&sm.out[first + i * kDistance][column]);
    const float weight = weight_of(state.x, max);
    sum += weight * state.y;
    o.x += weight * x.x, o.y += weight * x.y, o.z += weight * x.z, o.w += weight * x.w;
  }
  return o;
}

// A unit's tiles here are over. slot: where the part of a result goes; -1: it is whole.
template <class T>
__device__ __forceinline__ void finish(const Params& p, SharedStorage<T>& sm, const float (&o)[1][T::kDim / 8][4],
                                       const generic::SoftmaxState<1>& state, int b, int h, int slot) {
  constexpr int kGroups = T::kDim / 4;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int own = warp * 16 + lane / 4 + 8 * r;
    const float sum = generic::sum_of_row(state.sum[0][r]);
    if (own % T::kRows >= p.rows) continue;
    if (lane % 4 == 0) sm.state[own] = make_float2(state.max[0][r], sum);
#pragma unroll
    for (int n = 0; n < T::kDim / 8; ++n)
      *reinterpret_cast<float2*>(&sm.out[own][8 * n + generic::lane_column()]) = make_float2(o[0][n][2 * r], o[0][n][2 * r + 1]);
  }
  sync_consumers<T>();
#pragma unroll 1
  for (int i = threadIdx.x; i < p.rows * kGroups; i += T::kConsumers) {
    const int row = i / kGroups, column = i % kGroups * 4;
    float max, sum;
    const float4 x = merged<T::kKeyWarps, T::kRows>(sm, row, column, max, sum);
    if (slot < 0) {
      store_result<T>(p.f, b, h, row, column, x, max, sum);
    } else {
      const int64_t at = static_cast<int64_t>(slot) * p.rows + row;
      *reinterpret_cast<float4*>(p.out_parts + at * T::kDim + column) = x;
      if (column == 0) reinterpret_cast<float2*>(p.state_parts)[at] = make_float2(max, sum);
    }
  }
  sync_consumers<T>();
}

// A row of a shared unit, by one of the kTeam warps that have it: of its parts every kTeam-th, joined into `own` of the block's rows.
template <class T, int kTeam>
__device__ __forceinline__ void gather_row(const Params& p, SharedStorage<T>& sm, const Shared& unit, int row, int own) {
  constexpr int kPairs = T::kDim / 64, kAtOnce = 8;  // pairs of columns of a lane; parts whose loads are under way together
  const int lane = threadIdx.x % 32, member = threadIdx.x / 32 % kTeam;
  float max = -INFINITY, sum = 0.f;
  float2 o[kPairs] = {};
#pragma unroll 1
  for (int first = member; first < unit.count; first += 32 * kTeam) {
    const int here = min(32, (unit.count - first + kTeam - 1) / kTeam);
    const auto row_of = [&](int i) { return static_cast<int64_t>(unit.slot(first + min(i, here - 1) * kTeam)) * p.rows + row; };
    float2 x[kAtOnce][kPairs];
    const auto load = [&](int i0) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
        for (int c = 0; c < kPairs; ++c)
          x[i][c] = __ldcg(reinterpret_cast<const float2*>(p.out_parts + row_of(i0 + i) * T::kDim) + lane * kPairs + c);
    };
    const float2 state = __ldcg(reinterpret_cast<const float2*>(p.state_parts) + row_of(lane));
    load(0);
    float top = fmaxf(max, state.x);
#pragma unroll
    for (int d = 16; d; d /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
    const float before = weight_of(max, top), weight = weight_of(state.x, top);
    float more = lane < here ? weight * state.y : 0.f;
#pragma unroll
    for (int d = 16; d; d /= 2) more += __shfl_xor_sync(~0u, more, d);
    max = top, sum = before * sum + more;
#pragma unroll
    for (int c = 0; c < kPairs; ++c) o[c].x *= before, o[c].y *= before;
#pragma unroll 1
    for (int i0 = 0; i0 < here; i0 += kAtOnce) {
      if (i0 > 0) load(i0);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float w = __shfl_sync(~0u, weight, i0 + i);
        if (i0 + i >= here) continue;
#pragma unroll
        for (int c = 0; c < kPairs; ++c) o[c].x += w * x[i][c].x, o[c].y += w * x[i][c].y;
      }
    }
  }
  if (lane == 0) sm.state[own] = make_float2(max, sum);
#pragma unroll
  for (int c = 0; c < kPairs; ++c) reinterpret_cast<float2*>(sm.out[own])[lane * kPairs + c] = o[c];
}

// This block's rows of the unit, 16 at a time.
template <int kTeam, class T>
__device__ __forceinline__ void join_rows(const Params& p, SharedStorage<T>& sm, const Shared& unit) {
  constexpr int kGroups = T::kDim / 4;
  const int warp = threadIdx.x / 32;
#pragma unroll 1
  for (int first = unit.mine; first < p.rows; first += 16 * unit.count) {
    const int here = min(16, (p.rows - first + unit.count - 1) / unit.count);
#pragma unroll 1
    for (int i = warp / kTeam; i < here; i += T::kWarps / kTeam) gather_row<T, kTeam>(p, sm, unit, first + i * unit.count, warp % kTeam * 16 + i);
    sync_consumers<T>();
#pragma unroll 1
    for (int i = threadIdx.x; i < here * kGroups; i += T::kConsumers) {
      const int column = i % kGroups * 4;
      float max, sum;
      const float4 x = merged<kTeam, 16>(sm, i / kGroups, column, max, sum);
      store_result<T>(p.f, unit.b, unit.h, first + i / kGroups * unit.count, column, x, max, sum);
    }
    sync_consumers<T>();
  }
}

// Of few parts a warp joins its own rows; of many, all warps join each.
template <class T>
__device__ __forceinline__ void join(const Params& p, SharedStorage<T>& sm, const Shared& unit) {
  if (unit.count > 8)
    join_rows<T::kWarps>(p, sm, unit);
  else if (unit.count > 1)
    join_rows<1>(p, sm, unit);
}

}  // namespace attile::cuda::decode_sm90
