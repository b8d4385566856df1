// What the ring holds next. A part's entries, in order: for each request its queries, then its key blocks. Queries come through the ring
// like keys, so the next request's are there when it begins.
//
// One thread of `left` and one of `right` (not in the warp that loads) each have their own walk, kAhead blocks ahead: at least three blocks
// before an entry is read, so that the barriers of the blocks between order write and reads. They run while their warpgroup waits for the
// next S; the state is in shared memory, for these warpgroups have no register to spare. A page number goes straight into its entry by
// cp.async, and is waited for a step later: never on the spot.
#pragma once

#include "cuda/mla_decode/sm90/traits.cuh"
#include "cuda/ptx/cp_async.cuh"

namespace attile::cuda::mla_sm90 {

template <class T>
__device__ __forceinline__ void walk_next_request(Walk& w, const Segments& seg) {
  do {
    w.r = w.r + 1;
    if (w.r > seg.part.r1) {
      w.left = 0;
      w.q_left = 0;
      return;
    }
    w.left = seg.count(w.r);
  } while (w.left <= 0);
  w.q_left = seg.q_entries(w.r);
  const int first = seg.begin(w.r) * T::kN;
  w.page_no = first / seg.p.page_size;
  w.at = first % seg.p.page_size;
}

template <class T>
__device__ __forceinline__ void walk_step(Walk& walk, Entry& entry, const Segments& seg) {
  volatile Entry& e = entry;
  Walk w = walk;  // read and written at once: one after the other its words take 30 cycles each
  if (w.q_left > 0) {
    e.page = w.r;
    e.at = kQ - (seg.q_entries(w.r) - w.q_left);
    walk.q_left = w.q_left - 1;
    return;
  }
  if (w.left <= 0) {
    e.at = kEnd;
    return;
  }
  e.at = w.at;
  if (!seg.p.page_table)
    e.page = w.r;
  else
    ptx::cp_async_4(ptx::shared_address(&entry.page), page_entry(seg.p, w.r, w.page_no), 4);
  w.at = w.at + T::kN;
  if (w.at >= seg.p.page_size) {
    w.at = 0;
    w.page_no = w.page_no + 1;
  }
  w.left = w.left - 1;
  if (w.left == 0) walk_next_request<T>(w, seg);
  walk = w;
}

// How many entries are known when the first load is asked for: all kAhead where no second request has one of them, a lane each. One lane
// that steps from one to the next takes 0.25 us an entry.
__device__ __forceinline__ bool walks_at_once(const Segments& seg) {
  const int r = seg.part.r0, count = seg.part.r1 >= r ? seg.count(r) : 0;
  return count > kAhead || (count > 0 && seg.part.r1 == r);
}

// Steps from entry `from` up to `to`; from 0: the first ones. Not inline: where requests are long it would stand in the way of the first load.
template <class T>
__device__ __noinline__ void walk_steps(Walk& walk, Entry* entries, const Segments& seg, int from, int to) {
  if (from == 0) {
    Walk w{seg.part.r0 - 1, 0, 0, 0, 0};
    walk_next_request<T>(w, seg);
    walk = w;
  }
#pragma unroll 1
  for (int i = from; i < to; ++i) walk_step<T>(walk, entries[i], seg);
}

// The first entries, all of them or kFirst, by a warp.
template <class T>
__device__ __forceinline__ void walk_begin(SharedStorage<T>& sm, int half, const Segments& seg) {
  Walk& w = sm.walk[half];
  const int lane = threadIdx.x & 31, r = seg.part.r0;
  if (!walks_at_once(seg)) {
    if (lane == 0) walk_steps<T>(w, sm.entries[half], seg, 0, T::kFirst);
    return;
  }
  // Lane kAhead: where the walk goes on.
  if (lane > kAhead) return;
  const int q = seg.q_entries(r), count = seg.count(r), key = (seg.begin(r) + lane - q) * T::kN;
  const bool paged = seg.p.page_table;
  const int page_no = paged ? key / seg.p.page_size : 0, at = paged ? key - page_no * seg.p.page_size : key;
  if (lane == kAhead) {
    w.r = r;
    w.q_left = 0;
    w.left = max(count - (kAhead - q), 0);  // 0: the part ends here
    w.page_no = page_no;
    w.at = at;
    return;
  }
  volatile Entry& e = sm.entry(half, lane);
  e.at = lane < q ? kQ - lane : lane < q + count ? at : kEnd;
  if (lane < q || lane >= q + count || !paged)
    e.page = r;
  else
    ptx::cp_async_4(ptx::shared_address(&sm.entries[half][lane].page), page_entry(seg.p, r, page_no), 4);
}

}  // namespace attile::cuda::mla_sm90
