// The output warpgroups of few_rows.cuh: a warp has 64 columns of O.
#pragma once

#include "cuda/mla_decode/sm90/few_rows.cuh"
#include "cuda/mla_decode/sm90/join.cuh"
#include "cuda/mla_decode/sm90/output.cuh"

namespace attile::cuda::mla_sm90::few_rows {

// 16 rows of a warp's 64 columns: o[i][j][2 e + k] is column 16 i + 4 t + 2 k + j of row lane / 4 + 8 e, t being lane % 4.
struct Output {
  float o[4][2][4] = {};

  __device__ __forceinline__ void rescale(float scale0, float scale1) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) o[i / 2][i % 2][e] *= e < 2 ? scale0 : scale1;
  }
  // O += P V of a block; the warp's columns begin at `column`.
  __device__ __forceinline__ void add(const uint32_t (&p)[4][4], const Block& block, int column) {
    const int lane = threadIdx.x & 31, row = lane & 15;
    const uint32_t from = ptx::shared_address(block.latent[column / Shape::kBoxColumns]) + row * 128;
    const int chunk = column % Shape::kBoxColumns / 16 + lane / 16;
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int h = 0; h < 4; h += 2) {
        uint32_t x[4];  // (16 columns, the next 16) x (keys 0 .. 7, 8 .. 15): two keys of two columns
        ptx::ldmatrix_x4_trans(x, from + k * 16 * 128 + (((chunk + h) ^ (row & 7)) << 4));
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = __byte_perm(x[i], 0, 0x3120);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          F16::mma(o[h + i][0], p[k], low_two(x[i * 2]), low_two(x[i * 2 + 1]));
          F16::mma(o[h + i][1], p[k], high_two(x[i * 2]), high_two(x[i * 2 + 1]));
        }
      }
  }
  __device__ __forceinline__ float4 four(int i, int e, float inv) const {
    return {o[i][0][e * 2] * inv, o[i][1][e * 2] * inv, o[i][0][e * 2 + 1] * inv, o[i][1][e * 2 + 1] * inv};
  }
};

// The rows of a request, or a part's partial result. sums: of exp2(score - high), of this lane's two rows.
inline __device__ void store(const Segments& seg, int r, int half, const Output& out, int column, const float (&sums)[2],
                             const float (&high)[2]) {
  const Params& p = seg.p;
  const int lane = threadIdx.x & 31, slot = seg.slot(r), rows = seg.rows(r), first = column + (lane & 3) * 4;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int row = lane / 4 + e * 8;
    if (row >= rows) continue;
    float inv = (sums[e] > 0.f ? 1.f / sums[e] : sums[e]) * p.ckv_scale, lse = high[e] + log2f(sums[e]);  // 0, or a NaN, stays
    if (slot < 0) {
      if (p.sink_log2) add_sinks(p.sink_log2[row % p.heads], inv, lse);
      if (column == 0 && (lane & 3) == 0) seg.store_lse(r, row, lse);
      char* to = p.out + (seg.out_at(r, row) + first) * 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (first + i * 16 >= p.latent) continue;
        const float4 x = out.four(i, e, inv);
        if (p.out_aligned)
          *reinterpret_cast<uint2*>(to + i * 32) = make_uint2(Bf16::pack(x.x, x.y), Bf16::pack(x.z, x.w));
        else
          store_pair<Bf16>(to + i * 32, x.x, x.y, true), store_pair<Bf16>(to + i * 32 + 4, x.z, x.w, true);
      }
    } else {
      const int64_t slot_rows = static_cast<int64_t>(p.seqlen_q) * p.heads, at = slot * slot_rows + row;
      if (column == half * Shape::kOutN && (lane & 3) == 0) p.lse_parts[half * 2 * p.parts * slot_rows + at] = lse;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (first + i * 16 < p.latent) *reinterpret_cast<float4*>(p.out_parts + at * p.latent + first + i * 16) = out.four(i, e, inv);
    }
  }
  if (slot < 0) return;
  ptx::named_barrier_sync(2 + half, 128);  // tell those who have the request's other parts
  if ((threadIdx.x & 127) == 0) add_release(p.arrived + r * 2 + half, 1);
}

inline __device__ void output(Storage& sm, const Segments& seg, int half) {
  const int lane = threadIdx.x & 31, row = lane / 4, column = half * Shape::kOutN + (threadIdx.x >> 5 & 3) * 64;
  uint32_t n = 0;
  ptx::named_barrier_sync(2 + half, 128);  // so that racecheck sees the order behind score, which has waited as often (docs/hopper-mla.md)
  for (int i = 0; i < Shape::kPlaces; ++i) sm.free_place(i);
#pragma unroll 1
  for (int r = seg.part.r0; r <= seg.part.r1; ++r) {
    const int count = seg.count(r);
    if (count <= 0) {
      if (seg.kv_len(r) == 0) clear_rows(seg, r, half, Shape::kOutN);
      continue;
    }
    Output out;
    float sums[2] = {}, high[2] = {};
#pragma unroll 1
    for (int i = 0; i < count; ++i, ++n) {
      const int place = n % Shape::kPlaces, p_row = lane & 15;
      uint32_t p[4][4];
      sm.wait_p(n);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        ptx::ldmatrix_x4(p[k], ptx::shared_address(sm.p[place]) + p_row * 128 + (((k * 2 + lane / 16) ^ (p_row & 7)) << 4));
      const float scale0 = sm.scale[place][row], scale1 = sm.scale[place][row + 8];
      if (i == count - 1)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float4 x = all_of(sm.sums[place][row + e * 8]);
          sums[e] = (x.x + x.y) + (x.z + x.w), high[e] = sm.high[place][row + e * 8];
        }
      sm.free_place(n);
      if (i > 0 && __any_sync(~0u, scale0 != 1.f || scale1 != 1.f)) out.rescale(scale0, scale1);
      sm.wait_keys(n);  // they are there: so that this thread sees what TMA wrote
      out.add(p, sm.keys[n % Shape::kStages], column);
      sm.release(n);
    }
    store(seg, r, half, out, column, sums, high);
  }
}

}  // namespace attile::cuda::mla_sm90::few_rows
