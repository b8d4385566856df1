// Joins the partial results of a split request, in the kernel: whoever computed one of its n parts waits for the others and joins every
// n-th row, for its half of the columns. o = sum_i w_i o_i, w_i = 2^(lse_i - lse), in the order of the parts: the bits do not depend on
// who came last. The blocks of the grid are resident together: one a multiprocessor, at most as many, by a cooperative launch. Two parts
// that are a cluster have a shorter way: pairs.cuh.
#pragma once

#include "cuda/mla_decode/sm90/traits.cuh"

namespace attile::cuda::mla_sm90 {

// Parts first .. first + n - 1 of a request, and where their partial results are.
struct Pieces {
  int n, mine;            // this block's place among them
  int first_slot, other;  // slot of the first, and of the next one; then every second
  __device__ __forceinline__ int slot(int i) const { return i == 0 ? first_slot : other + 2 * (i - 1); }
};

// o = sum_i w_i o_i for four columns of kRows rows a thread at a time, kParts parts at once: so many loads are under way.
template <class T>
struct JoinRows {
  const Segments& seg;
  const Pieces& pieces;
  const float* weight;  // [my_rows][n]
  int r, half, my_rows, first_row;

  template <int kRows, int kParts>
  __device__ __forceinline__ void run() const {
    const Params& p = seg.p;
    constexpr int kColumns = T::kHalfBoxes * 16, kStep = 128 / kColumns;  // groups of four columns; rows side by side
    const int t = threadIdx.x & 127, column = half * T::kOutN + t % kColumns * 4, n = pieces.n;
    const int64_t row_step = static_cast<int64_t>(n) * p.latent, slot_step = static_cast<int64_t>(p.seqlen_q) * p.heads * p.latent;
    const float* from = p.out_parts + static_cast<int64_t>(first_row) * p.latent + column;
    if (column >= p.latent || t / kColumns >= kStep) return;
#pragma unroll 1
    for (int i = t / kColumns; i < my_rows; i += kRows * kStep) {
      float4 acc[kRows] = {};
#pragma unroll 1
      for (int s0 = 0; s0 < n; s0 += kParts) {
        float4 v[kParts][kRows];
        float w[kParts][kRows];
#pragma unroll
        for (int s = 0; s < kParts; ++s)
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
            const int k = i + j * kStep;
            const bool live = s0 + s < n && k < my_rows;
            w[s][j] = 0.f, v[s][j] = make_float4(0.f, 0.f, 0.f, 0.f);
            if (live) {
              w[s][j] = weight[k * n + s0 + s];
              v[s][j] = __ldcg(reinterpret_cast<const float4*>(from + pieces.slot(s0 + s) * slot_step + k * row_step));
            }
          }
#pragma unroll
        for (int s = 0; s < kParts; ++s)
#pragma unroll
          for (int j = 0; j < kRows; ++j) {
            acc[j].x += w[s][j] * v[s][j].x, acc[j].y += w[s][j] * v[s][j].y;
            acc[j].z += w[s][j] * v[s][j].z, acc[j].w += w[s][j] * v[s][j].w;
          }
      }
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const int k = i + j * kStep;
        if (k >= my_rows) continue;
        uint16_t* out = reinterpret_cast<uint16_t*>(p.out) + seg.out_at(r, first_row + k * n) + column;
        const uint2 x = make_uint2(T::Element::pack(acc[j].x, acc[j].y), T::Element::pack(acc[j].z, acc[j].w));
        if (p.out_aligned)
          *reinterpret_cast<uint2*>(out) = x;
        else
          out[0] = static_cast<uint16_t>(x.x), out[1] = static_cast<uint16_t>(x.x >> 16), out[2] = static_cast<uint16_t>(x.y),
          out[3] = static_cast<uint16_t>(x.y >> 16);
      }
    }
  }
};

template <class T>
__device__ __forceinline__ void join_request(float* weight, const Segments& seg, int half, int r) {
  const Params& p = seg.p;
  const volatile Part& part = seg.part;
  if (seg.count(r) <= 0 || seg.slot(r) < 0) return;
  const int y = blockIdx.y, t = threadIdx.x & 127;
  Pieces pieces;
  if (r == part.r0)
    pieces = {part.count0, part.before0, part.first_slot0, 2 * (y - part.before0 + 1)};
  else
    pieces = {part.count1, 0, 2 * y + 1, 2 * (y + 1)};
  const int n = pieces.n, share = pieces.mine;
  const int row_base = seg.m_block * T::kM, valid = min(T::kM, seg.rows(r) - row_base);
  const int my_rows = share < valid ? (valid - share + n - 1) / n : 0;  // rows share, share + n, ...
  if (t == 0) wait_at_least(p.arrived + (static_cast<int64_t>(r) * p.tiles + seg.m_block) * 2 + half, n);
  ptx::named_barrier_sync(2 + half, 128);
  const int64_t slot_step = static_cast<int64_t>(p.seqlen_q) * p.heads;
  const float* lse_parts = p.lse_parts + half * 2 * p.parts * slot_step + row_base + share;
  for (int i = t; i < my_rows * n; i += 128) weight[i] = __ldcg(lse_parts + pieces.slot(i % n) * slot_step + i / n * n);
  ptx::named_barrier_sync(2 + half, 128);
  // lse -> weights: a group of lanes a row, wider where there are many parts.
  const int width = n <= 8 ? 1 : 32;
  for (int i = t / width; i < my_rows; i += 128 / width) {
    float* w = weight + i * n;
    const int row = row_base + share + i * n;
    const float sink = p.sink_log2 ? p.sink_log2[row % p.heads] : -INFINITY;
    float high = -INFINITY, total = 0.f;
    for (int s = t % width; s < n; s += width) high = fmaxf(high, w[s]);
    for (int d = width / 2; d; d /= 2) high = fmaxf(high, __shfl_xor_sync(~0u, high, d));
    high = fmaxf(high, sink);
    const float sub = high == -INFINITY ? 0.f : high;
    for (int s = t % width; s < n; s += width) total += w[s] = exp2f(w[s] - sub);
    for (int d = width / 2; d; d /= 2) total += __shfl_xor_sync(~0u, total, d);
    total += exp2f(sink - sub);
    const float inv = total == 0.f ? 0.f : 1.f / total;  // a NaN stays
    for (int s = t % width; s < n; s += width) w[s] *= inv;
    if (half == 0 && t % width == 0) seg.store_lse(r, row, sub + log2f(total));
  }
  ptx::named_barrier_sync(2 + half, 128);
  const JoinRows<T> rows{seg, pieces, weight, r, half, my_rows, row_base + share};
  if (my_rows > 4)
    rows.template run<4, 4>();
  else
    rows.template run<1, 16>();
}

// weight: 64 + n floats of shared memory that this half may use now.
template <class T>
__device__ __forceinline__ void join(float* weight, const Segments& seg, int half) {
  const int r0 = seg.part.r0, r1 = seg.part.r1;
#pragma unroll 1
  for (int r = r0; r <= r1; r += max(1, r1 - r0)) {  // only the first and the last can be split
    join_request<T>(weight, seg, half, r);
    ptx::named_barrier_sync(2 + half, 128);
  }
}

}  // namespace attile::cuda::mla_sm90
