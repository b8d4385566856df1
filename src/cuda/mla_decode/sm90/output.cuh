// The two output warpgroups: left and right half of O's columns. O = O * scale + P V, V being the latent part of the keys, read MN-major;
// then the half's next load (each refills what it has used, without asking the other), and the request's rows to memory.
#pragma once

#include <type_traits>

#include "cuda/mla_decode/sm90/loads.cuh"
#include "cuda/mla_decode/sm90/pairs.cuh"
#include "cuda/mla_decode/sm90/plan.cuh"
#include "cuda/mla_decode/sm90/walk.cuh"
#include "cuda/mla_decode/sm90/widen.cuh"

namespace attile::cuda::mla_sm90 {

// Eight elements, at an address of 16 bytes if `aligned`.
__device__ __forceinline__ void store_eight(uint16_t* to, const uint4& x, bool aligned) {
  if (aligned) {
    *reinterpret_cast<uint4*>(to) = x;
    return;
  }
  const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = static_cast<uint16_t>(words[i / 2] >> i % 2 * 16);
}

// Rows from `first` on, at most 64, of a request without keys: lse is that of the sinks.
inline __device__ __noinline__ void clear_rows(const Segments& seg, int r, int half, int half_columns) {
  const Params& p = seg.p;
  const int rows = seg.rows(r), first = seg.m_block * 64, t = threadIdx.x & 127;
  const int begin = half * half_columns, end = min(p.latent, begin + half_columns);
  for (int row = first; row < min(rows, first + 64); ++row) {
    uint16_t* out = reinterpret_cast<uint16_t*>(p.out) + seg.out_at(r, row);
    for (int c = begin + t; c < end; c += 128) out[c] = 0;
    if (half == 0 && t == 0) seg.store_lse(r, row, p.sink_log2 ? p.sink_log2[row % p.heads] : -INFINITY);
  }
}

// A whole request's row with its sinks: 1 / sum and lse, base 2.
__device__ __forceinline__ void add_sinks(float sink, float& inv_sum, float& lse) {
  const float high = fmaxf(lse, sink);
  if (high == -INFINITY) return;
  const float total = high + log2f(exp2f(lse - high) + exp2f(sink - high));
  inv_sum *= exp2f(lse - total), lse = total;
}

// A whole request's rows with their sinks: 1 / sum and lse of the two rows of this lane; writes lse.
__device__ __forceinline__ void finish_rows(const Segments& seg, int r, int half, int row0, float (&inv)[2], float (&lse)[2]) {
  const Params& p = seg.p;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int row = row0 + e * 8;
    if (p.sink_log2) add_sinks(p.sink_log2[row % p.heads], inv[e], lse[e]);
    if (half == 0 && (threadIdx.x & 3) == 0 && row < seg.rows(r)) seg.store_lse(r, row, lse[e]);
  }
}

// A whole request's rows, from registers.
template <class T>
__device__ __forceinline__ void store_direct(const Segments& seg, int r, int half, Output<T>& out, float (&inv)[2], float (&lse)[2]) {
  const Params& p = seg.p;
  const int t = threadIdx.x & 127, row0 = seg.m_block * T::kM + t / 32 * 16 + (t & 31) / 4, rows = seg.rows(r);
  finish_rows(seg, r, half, row0, inv, lse);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int row = row0 + e * 8;
    const bool live = row < rows;
    out.store(reinterpret_cast<uint16_t*>(p.out) + (live ? seg.out_at(r, row) : 0) + half * T::kOutN, p.out_aligned, e, inv[e], live,
              p.latent - half * T::kOutN);
  }
}

// The same through `stage`, the half of the last block's latents, so that 128 bytes of a row are stored side by side. Each warp has its own
// 16 rows there, once all warps' O has read the keys. before(c): makes columns 64 c.. ready.
template <class T, class Before>
__device__ __forceinline__ void store_staged(const Segments& seg, int r, int half, const Output<T>& out, float (&inv)[2], float (&lse)[2],
                                             uint8_t* stage, Before&& before) {
  const Params& p = seg.p;
  const int t = threadIdx.x & 127, lane = t & 31, first = seg.m_block * T::kM + t / 32 * 16, rows = seg.rows(r) - first;
  ptx::named_barrier_sync(2 + half, 128);
  if (rows <= 0) return;
  finish_rows(seg, r, half, first + lane / 4, inv, lse);
  constexpr int kBox = T::kM * 128, kBoxes = T::kHalfBoxes * T::kBoxBytes / kBox;  // boxes of 64 columns that the stage holds
  static_assert(kBoxes > 0 && T::kHalfBoxes % kBoxes == 0);
  const uint32_t base = ptx::shared_address(stage) + t / 32 * 16 * 128, to = base + (lane & 15) * 128;
  const int64_t at = seg.out_at(r, first + min(lane & 15, rows - 1));
#pragma unroll
  for (int c0 = 0; c0 < T::kHalfBoxes; c0 += kBoxes) {
#pragma unroll
    for (int c = c0; c < c0 + kBoxes; ++c) before(c);
#pragma unroll
    for (int i = 0; i < kBoxes * 8; i += 2) {  // groups of 8 columns
      const float* o = out.o + (c0 * 8 + i) * 4;
      ptx::stmatrix_x4(to + i / 8 * kBox + (((i % 8 + lane / 16) ^ (lane & 7)) << 4), T::Element::pack(o[0] * inv[0], o[1] * inv[0]),
                       T::Element::pack(o[2] * inv[1], o[3] * inv[1]), T::Element::pack(o[4] * inv[0], o[5] * inv[0]),
                       T::Element::pack(o[6] * inv[1], o[7] * inv[1]));
    }
    __syncwarp();
#pragma unroll 1
    for (int k = 0; k < 4; ++k) {
      const int row = lane / 8 + k * 4, column = half * T::kOutN + c0 * 64 + lane % 8 * 8;
      uint16_t* to_row = reinterpret_cast<uint16_t*>(p.out) + __shfl_sync(~0u, at, row) + column;
#pragma unroll
      for (int c = 0; c < kBoxes; ++c) {
        const uint4 x = ptx::load_shared_16(base + row * 128 + c * kBox + ((lane % 8 ^ (row & 7)) << 4));
        if (row < rows && column + c * 64 < p.latent) store_eight(to_row + c * 64, x, p.out_aligned);
      }
    }
    __syncwarp();
  }
  ptx::fence_async_proxy();  // TMA writes there next
}

// A part's partial result.
template <class T>
__device__ __forceinline__ void store_part(const Segments& seg, int r, int slot, int half, Output<T>& out, const float (&inv)[2],
                                           const float (&lse)[2]) {
  const Params& p = seg.p;
  const int t = threadIdx.x & 127, row0 = seg.m_block * T::kM + t / 32 * 16 + (t & 31) / 4, rows = seg.rows(r);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int row = row0 + e * 8;
    const bool live = row < rows;
    const int64_t slot_rows = static_cast<int64_t>(p.seqlen_q) * p.heads, at = slot * slot_rows + row;
    if (live && (t & 3) == 0) p.lse_parts[half * 2 * p.parts * slot_rows + at] = lse[e];
    out.store_partial(p.out_parts + at * p.latent + half * T::kOutN, e, inv[e], live, p.latent - half * T::kOutN);
  }
  ptx::named_barrier_sync(2 + half, 128);  // tell those who have the request's other parts
  if (t == 0) add_release(p.arrived + (static_cast<int64_t>(r) * p.tiles + seg.m_block) * 2 + half, 1);
}

// The ring's loads as an output warpgroup issues them, where no producers do.
template <class T>
struct Refill {
  SharedStorage<T>& sm;
  const Segments& seg;
  const Maps& maps;
  int half;

  __device__ __forceinline__ bool loads() const {  // warp 0, left's alone, all, or none
    return !T::kProducers && (T::kNarrow || (threadIdx.x % 128 < 32 && (half == 0 || !T::kOneLoader)));
  }

  // Where bytes are not the limit: the first entries, at first queries alone, for they need no page number.
  __device__ __forceinline__ void fill(bool queries) {
    if (!loads()) return;
    if constexpr (T::kNarrow) {
      if (queries) return;
#pragma unroll 1
      for (int i = 0; i < T::kRawStages; ++i)
        if (threadIdx.x % 128 < 32) load_raw<T>(sm, i, half, sm.entry(half, i), maps), __syncwarp();
    }
#pragma unroll 1
    for (int i = 0; i < T::kLatentStages; ++i) {
      const volatile Entry& e = sm.entry(half, i);
      if constexpr (T::kNarrow) {
        if (e.at == kEnd) continue;
        if (half == 1 && i < T::kRopeStages && threadIdx.x % 128 < 32 && ptx::elect_one()) load_rope<T>(sm, i, e, maps, seg);
        widen<T>(sm, i, half, maps, seg);
      } else {
        if (e.at != kEnd && (e.at <= kQ) == queries && ptx::elect_one()) ask(i, e);
      }
      __syncwarp();
    }
  }
  // Where they are: the first request's queries, while another warp begins the walk; by right for both, or each half its own. How many
  // entries they are.
  __device__ __forceinline__ int fill_queries() {
    if (threadIdx.x % 128 >= 32) return 0;
    int r = seg.part.r0;
#pragma unroll 1
    while (r <= seg.part.r1 && seg.count(r) <= 0) ++r;
    const int entries = r <= seg.part.r1 ? seg.q_entries(r) : 0;
    if (entries == 0 || (T::kOneLoader && half == 0) || !ptx::elect_one()) return entries;
    if constexpr (T::kOneLoader) {
      const Entry queries{r, kQ};
      load_block<T>(sm, 0, queries, maps, seg);
    } else {
#pragma unroll 1
      for (int i = 0; i < entries; ++i) {
        const int row = query_row<T>(kQ - i, r, seg), batch = seg.q_batch(r);
        const uint32_t full = sm.pipe.latent_barrier(i, half), rope_full = sm.pipe.rope_barrier(i);
        if (half == 1) {
          constexpr int kBoxes = T::kHeadRope ? 1 : T::kRopeBoxes;  // of heads: a head's own columns
          ptx::mbarrier_arrive_expect(rope_full, kBoxes * T::kBoxBytes);
          const int column = T::kHeadRope || seg.p.rope ? 0 : T::kLatentBoxes * 64;
          load_queries<T, kBoxes>(sm.rope[sm.pipe.rope_place(i)][0], maps.q_pe, column, row, batch, rope_full, seg);
        }
        ptx::mbarrier_arrive_expect(full, T::kLatentBytes / 2);
        load_queries<T, T::kHalfBoxes>(sm.half_of(i, half)[0], maps.q_nope, half * T::kOutN, row, batch, full, seg);
      }
    }
    return entries;
  }
  // Then all entries from i on.
  __device__ __forceinline__ void fill_from(int i) {
    if (!loads()) return;
#pragma unroll 1
    for (; i < T::kLatentStages; ++i) {
      const volatile Entry& e = sm.entry(half, i);
      if (e.at != kEnd && ptx::elect_one()) ask(i, e);
      __syncwarp();
    }
  }
  // Entry i of the first ones, by one lane.
  __device__ __forceinline__ void ask(int i, const volatile Entry& e) {
    if constexpr (T::kOneLoader) {
      load_block<T>(sm, i, e, maps, seg);
    } else {
      if (half == 1 && i < T::kRopeStages) load_rope<T>(sm, i, e, maps, seg);
      load_latent<T>(sm, i, half, e, maps, seg);
    }
  }
  // Rope keys of a later block over P(n), which both warpgroups must have used.
  __device__ __forceinline__ void rope(uint32_t n) {
    const volatile Entry& e = sm.entry(1, n + T::kRopeStages);
    if (T::kProducers || T::kOneLoader || half == 0 || threadIdx.x % 128 >= 32 || e.at == kEnd) return;
    sm.pipe.wait_free(n, 0), sm.pipe.wait_free(n, 1);
    if (ptx::elect_one()) load_rope<T>(sm, n + T::kRopeStages, e, maps, seg);
    __syncwarp();
  }
  // This half of block n, which this warpgroup has used; or all of it.
  __device__ __forceinline__ void latent(uint32_t n) {
    const uint32_t m = n + T::kLatentStages;
    const volatile Entry& e = sm.entry(half, m);
    if (!loads() || e.at == kEnd) return;
    sm.pipe.wait_free(n, half);
    if (T::kOneLoader) sm.pipe.wait_free(n, 1);
    if constexpr (T::kNarrow) {
      widen<T>(sm, m, half, maps, seg);
    } else if (ptx::elect_one()) {
      if constexpr (T::kOneLoader)
        load_block<T>(sm, m, e, maps, seg);
      else
        load_latent<T>(sm, m, half, e, maps, seg);
    }
    __syncwarp();
  }
  // Entry n is used up, and P(n): what takes their place is asked for.
  __device__ __forceinline__ void used(uint32_t n) {
    sm.pipe.release(n, half);
    rope(n);
    latent(n);
  }

  // Where these stand between two blocks' products (kOwnPlaces), in three steps. Before P is there: the entry that warp 0 is to ask for, its
  // half's latents, or right's warp 2, rope keys; shared memory answers late while O runs.
  __device__ __forceinline__ Entry next(uint32_t n) const {
    const int warp = threadIdx.x / 32 % 4;
    const bool rope = half == 1 && warp == 2;
    if (warp != 0 && !rope) return {0, kEnd};
    const volatile Entry& e = sm.entry(half, n + (rope ? 2 : T::kLatentStages));
    const int page = e.page, at = e.at;
    return {page, at};
  }
  // While O runs: rope keys, if S is through with those before.
  __device__ __forceinline__ void rope_beside(uint32_t n, Entry& e) {
    if (half == 0 || threadIdx.x / 32 % 4 != 2 || e.at == kEnd || !sm.pipe.s_is_done(n + 1)) return;
    load_next_rope(n + 2, e);
    e.at = kEnd;
  }
  // When all of a half's warps have used entry n: latents, and rope keys that had to wait. All four warps wait, for they meet at the next P
  // anyway, and racecheck takes a named barrier for one only where all have waited as often (docs/hopper-mla.md).
  __device__ __forceinline__ void used(uint32_t n, const Entry& e) {
    sm.pipe.wait_half_used(half);
    if (e.at != kEnd) {
      if (half == 0 || threadIdx.x / 32 % 4 == 0) {
        if (ptx::elect_one()) {
          const uint32_t full = sm.pipe.latent_barrier(n, half);
          ptx::mbarrier_arrive_expect(full, T::kLatentBytes / 2);
          load_boxes<T, T::kHalfBoxes>(sm.half_of(n, half)[0], maps.ckv, maps.q_nope, half * T::kHalfBoxes, e.at, e.page, full,
                                       load_policy<T>(seg), seg);
        }
      } else {  // P(n + 1) comes after that, so nobody waits for this warp
        sm.pipe.wait_s(n + 1);
        load_next_rope(n + 2, e);
      }
    }
    __syncwarp();
  }

 private:
  __device__ __forceinline__ void load_next_rope(uint32_t m, const Entry& e) {
    if (m == 0) __builtin_unreachable();
    if (ptx::elect_one()) {
      const uint32_t full = sm.pipe.rope_barrier(m);
      ptx::mbarrier_arrive_expect(full, T::kRopeBytes);
      load_boxes<T, T::kRopeBoxes>(sm.rope[sm.pipe.rope_place(m)][0], maps.kpe, maps.q_pe, seg.p.rope == 0 ? T::kLatentBoxes : 0, e.at,
                                   e.page, full, load_policy<T>(seg), seg);
    }
    __syncwarp();
  }
};

template <class T>
__device__ __forceinline__ void output(SharedStorage<T>& sm, const Segments& seg, int half, const Maps& maps, Others& others) {
  const int t = threadIdx.x & 127, lane = t & 31, warp = t >> 5;
  const int row0 = warp * 16 + lane / 4;
  uint32_t n = 0;  // ring entries so far
  Refill<T> refill{sm, seg, maps, half};
  if constexpr (T::kBytesLimit) {
    const int asked = refill.fill_queries();
    if (warp == 1) walk_begin<T>(sm, half, seg), ptx::cp_async_wait();
    __syncwarp();
    ptx::named_barrier_sync(2 + half, 128);
    refill.fill_from(asked);
  } else if constexpr (!T::kProducers) {
    if (warp == 1) walk_begin<T>(sm, half, seg);
    __syncwarp();
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {  // queries need no page number
      if (pass == 1) ptx::cp_async_wait();
      ptx::named_barrier_sync(2 + half, 128);
      refill.fill(pass == 0);
    }
  } else {
    ptx::named_barrier_sync(2 + half, 128);  // so that racecheck sees the order behind score, which has waited as often (docs/hopper-mla.md)
  }
  if constexpr (!T::kProducers) {
    if (warp == 1 && lane == 0 && !walks_at_once(seg)) walk_steps<T>(sm.walk[half], sm.entries[half], seg, T::kFirst, kAhead);
    if (warp == 1) ptx::cp_async_wait();
    __syncwarp();
    if constexpr (T::kBytesLimit) ptx::named_barrier_sync(2 + half, 128);  // twice, as with two passes, for racecheck
  }
  others.wait();
  if constexpr (T::kOwnPlaces) sm.pipe.free_p_place();
  auto walk_on = [&] {
    if (!T::kProducers && warp == 1) {
      if (lane == 0) {
        ptx::cp_async_wait();  // the last step's page number
        walk_step<T>(sm.walk[half], sm.entries[half][(n + kAhead) % kEntries], seg);
      }
      __syncwarp();
    }
  };
  auto advance = [&](const Entry& next) {  // entry n is used up, and P
    if constexpr (T::kOwnPlaces)
      refill.used(n, next);
    else
      refill.used(n);
    walk_on();
    ++n;
  };
#pragma unroll 1
  for (int r = seg.part.r0; r <= seg.part.r1; ++r) {
    const int left = seg.count(r);
    if (left <= 0) {
      if (seg.kv_len(r) == 0) clear_rows(seg, r, half, T::kOutN);
      continue;
    }
    Output<T> out;
#pragma unroll 1
    for (int i = -seg.q_entries(r); i < left; ++i) {  // queries, then keys
      Entry next{};
      if constexpr (T::kOwnPlaces) next = refill.next(n);
      sm.pipe.wait_p(n, half);
      if (i >= 0) {
        const int slot = sm.pipe.slot(n);
        const float scale0 = sm.scale[slot][row0], scale1 = sm.scale[slot][row0 + 8];
        if (i > 0 && __any_sync(~0u, scale0 != 1.f || scale1 != 1.f)) out.rescale(scale0, scale1);
        const uint64_t pd = keys_descriptor(ptx::shared_address(sm.rope[sm.pipe.p_place(n)][0]));
        const uint64_t vd = values_descriptor(ptx::shared_address(sm.half_of(n, half)), T::kBoxBytes);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < T::kN / 16; ++k)
#pragma unroll
          for (int c = 0; c < T::kOutPieces; ++c)
            ptx::wgmma_ss<typename T::Wide, 1>(out.piece(c), pd + k * 2, vd + k * 128 + c * (T::kHalfBoxes / T::kOutPieces * T::kBoxBytes >> 4),
                                               k > 0 || i > 0);
        ptx::wgmma_commit();
        if constexpr (T::kOwnPlaces) refill.rope_beside(n, next);
        ptx::wgmma_wait<0>();
        ptx::pin(out.o);
      }
      if (i == left - 1) {  // 1 / sum and lse are there until entry n is used up
        const int at = sm.pipe.slot(n) * T::kM + row0, slot = seg.slot(r);
        float inv[2] = {sm.inv_sum[0][at], sm.inv_sum[0][at + 8]}, lse[2] = {sm.lse[0][at], sm.lse[0][at + 8]};
        if (T::kStaged && slot < 0 && !(T::kPairs && seg.part.pair))
          store_staged<T>(seg, r, half, out, inv, lse, sm.half_of(n, half)[0], [](int) {});
        else if constexpr (T::kKeeps)
          sm.kept.put(half, row0, inv, lse);
        else
          store_part<T>(seg, r, slot, half, out, inv, lse);
      }
      if (T::kOwnPlaces && i >= 0) sm.pipe.free_p_place();
      advance(next);
    }
    if constexpr (T::kKeeps) {
      float inv[2], lse[2];
      sm.kept.get(half, row0, inv, lse);
      if (const int slot = seg.slot(r); slot >= 0)
        store_part<T>(seg, r, slot, half, out, inv, lse);
      else if constexpr (T::kPairs) {
        if (seg.part.pair) {
          const bool live = seg.rows(r) > seg.m_block * T::kM + warp * 16;
          PairJoin<T> pair(sm.landing);
          if (half != static_cast<int>(blockIdx.y % 2)) {
            pair.send(live, out, inv, lse);
          } else {
            pair.begin(live, inv, lse);
            store_staged<T>(seg, r, half, out, inv, lse, sm.half_of(n - 1, half)[0], [&](int c) { pair.columns(c, out); });
          }
          return;  // there is nothing else in such a part
        }
      } else if constexpr (!T::kStaged)
        store_direct<T>(seg, r, half, out, inv, lse);
    }
  }
}

// Rows of packed queries behind the last request.
__device__ __forceinline__ void clear_rows_behind(const Params& p, int half_threads) {
  const int first = q_first_of(p, p.batch - 1) + q_len_of(p, p.batch - 1);
  const int64_t rows = static_cast<int64_t>(p.q_tokens - first) * p.heads, step = static_cast<int64_t>(gridDim.x) * gridDim.y;
  for (int64_t row = blockIdx.y * gridDim.x + blockIdx.x; row < rows; row += step) {
    const int token = first + static_cast<int>(row / p.heads), head = static_cast<int>(row % p.heads);
    uint16_t* out = reinterpret_cast<uint16_t*>(p.out) + token * p.out_token + head * p.out_head;
    for (int c = half_threads; c < p.latent; c += 256) out[c] = 0;
    if (half_threads == 0 && p.lse) p.lse[token * p.lse_token + head * p.lse_head] = -INFINITY;
  }
}

}  // namespace attile::cuda::mla_sm90
