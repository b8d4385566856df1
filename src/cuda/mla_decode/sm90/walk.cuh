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

// Entry n of the pages of request r; of a wide one its lower half, which a page that exists fits.
__device__ __forceinline__ const char* page_entry(const Segments& seg, int r, int n) {
  const Params& p = seg.p;
  int64_t at = n;
  if (p.page_begin.data) at = min(static_cast<int64_t>(page_begin_of(p, r)) + n, static_cast<int64_t>(p.table_entries) - 1);
  return p.page_table + r * p.table_row + at * p.table_entry;
}

template <class T>
__device__ __forceinline__ void walk_next_request(volatile Walk& w, const Segments& seg) {
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
  if (T::kGathered) {
    w.at = first;
  } else {
    w.page_no = first / seg.p.page_size;
    w.at = first % seg.p.page_size;
  }
}

template <class T>
__device__ __forceinline__ void walk_start(volatile Walk& w, const Segments& seg) {
  w.r = seg.part.r0 - 1;
  walk_next_request<T>(w, seg);
}

template <class T>
__device__ __forceinline__ void walk_step(volatile Walk& w, Entry& entry, const Segments& seg) {
  volatile Entry& e = entry;
  if (w.q_left > 0) {
    e.page = w.r;
    e.at = kQ - (seg.q_entries(w.r) - w.q_left);
    w.q_left = w.q_left - 1;
    return;
  }
  if (w.left <= 0) {
    e.at = kEnd;
    return;
  }
  e.at = w.at;
  if (T::kGathered || !seg.p.page_table)
    e.page = w.r;
  else
    ptx::cp_async_4(ptx::shared_address(&entry.page), page_entry(seg, w.r, w.page_no), 4);
  w.at = w.at + T::kN;
  if (!T::kGathered && w.at >= seg.p.page_size) {
    w.at = 0;
    w.page_no = w.page_no + 1;
  }
  w.left = w.left - 1;
  if (w.left == 0) walk_next_request<T>(w, seg);
}

}  // namespace attile::cuda::mla_sm90
