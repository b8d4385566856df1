// The loads of keys row by row, for pages of any size: cp.async by the producers, four warps that do nothing else, 16 keys each. A lane knows
// where one key of its warp lies; before the copies four rows go round by shuffles, eight lanes a row. Shuffles, loads and shared memory wait
// behind copies that were asked for before, so nothing else stands between them: the page number of a block's key is asked for a block ahead,
// and what a request's length says is kept. Producers walk over their part themselves, without the ring of entries.
//
// What cp.async writes is ordinary shared memory to wgmma: who waits for it fences (Pipeline::wait_latent, wait_rope).
#pragma once

#include <climits>

#include "cuda/mla_decode/sm90/loads.cuh"
#include "cuda/mla_decode/sm90/plan.cuh"

namespace attile::cuda::mla_sm90 {

// The pages of a request, its offset in a table that is one list read once.
struct PageRow {
  const char* entries;
  int most;  // the last entry that there is

  __device__ __forceinline__ PageRow(const Params& p, int r)
      : entries(page_entry(p, r, 0)), most(p.page_begin.data ? p.table_entries - 1 - page_begin_of(p, r) : INT_MAX) {}
  __device__ __forceinline__ int page(const Params& p, int n) const {
    return static_cast<int>(load_word(entries + min(n, most) * p.table_entry));
  }
};

template <class T>
struct Gather {
  // So the place that a right half waits for says that rope keys have theirs, too.
  static_assert(T::kN == 64 && T::kQEntries == 1 && T::kRopeBoxes == 1 && T::kHalfPlaces == 2 * T::kRopeStages - 1);
  // Where a row begins, in units of 16 bytes: one word to hand round.
  static constexpr int kUnit = 16;
  static constexpr uint32_t kNowhere = ~0u;

  SharedStorage<T>& sm;
  const Segments& seg;

  static __device__ __forceinline__ int lane() { return threadIdx.x & 31; }
  static __device__ __forceinline__ int warp() { return threadIdx.x >> 5 & 3; }
  static __device__ __forceinline__ int own_key() { return warp() * 16 + (threadIdx.x & 15); }

  // This lane's four rows, every fourth one of its warp's: row `at` of page `page` of an array is this lane's key's, at -1 nowhere.
  static __device__ __forceinline__ void rows_of(uint32_t (&rows)[4], int page, int64_t page_stride, int at, int row_stride) {
    const uint32_t own =
        at < 0 ? kNowhere : static_cast<uint32_t>(page * (page_stride / 8) + static_cast<int64_t>(at) * (row_stride / 8));
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[i] = __shfl_sync(~0u, own, i * 4 + lane() / 8);
  }
  // kBoxes boxes of 64 columns of this warp's keys, of an array that has `columns` from `base` on.
  template <int kBoxes>
  static __device__ __forceinline__ void copy(const void* base, const uint32_t (&rows)[4], int columns, uint8_t* boxes, uint32_t bar) {
    const int piece = lane() & 7, key = lane() / 8;
    const uint32_t to = ptx::shared_address(boxes) + (warp() * 16 + key) * 128;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool there = rows[i] != kNowhere;
      const char* from = static_cast<const char*>(base) + (there ? int64_t{rows[i]} * kUnit : 0) + piece * 16;
      const uint32_t row_to = to + i * 4 * 128 + ((piece ^ (i % 2 * 4 + key)) << 4);
#pragma unroll
      for (int c = 0; c < kBoxes; ++c)
        cp_async_16_once(row_to + c * T::kBoxBytes, from + c * 128, there && c * 64 + piece * 8 < columns ? 16 : 0);
    }
    cp_async_arrive(bar);
  }

  // Queries of request r as entry n. They come by TMA, whose thread arrives with them.
  __device__ __forceinline__ void queries(uint32_t n, int r, const Maps& maps) const {
    sm.pipe.wait_place(n, 0), sm.pipe.wait_place(n, 1);
    if (warp() == 0 && ptx::elect_one()) {
      const Entry e{r, kQ};
      for (int half = 0; half < 2; ++half) load_latent<T>(sm, n, half, e, maps, seg);
      load_rope<T>(sm, n, e, maps, seg);
    } else {
      for (int half = 0; half < 2; ++half) ptx::mbarrier_arrive(sm.pipe.latent_barrier(n, half));
      ptx::mbarrier_arrive(sm.pipe.rope_barrier(n));
    }
    __syncwarp();
  }
  // Keys as entry n; this lane's is row `at` of page `page`, or nowhere.
  __device__ __forceinline__ void keys(uint32_t n, int page, int at) const {
    const Params& p = seg.p;
    uint32_t rows[4], rope_rows[4];
    rows_of(rows, page, p.ckv_page, at, p.ckv_row), rows_of(rope_rows, page, p.kpe_page, at, p.kpe_row);
    sm.pipe.wait_place(n, 0);
    copy<T::kHalfBoxes>(p.ckv, rows, p.latent, sm.half_of(n, 0)[0], sm.pipe.latent_barrier(n, 0));
    sm.pipe.wait_place(n, 1);
    copy<T::kHalfBoxes>(static_cast<const char*>(p.ckv) + T::kOutN * 2, rows, p.latent - T::kOutN, sm.half_of(n, 1)[0],
                        sm.pipe.latent_barrier(n, 1));
    copy<1>(p.rope > 0 ? p.kpe : p.ckv, rope_rows, p.rope, sm.rope[sm.pipe.rope_place(n)][0], sm.pipe.rope_barrier(n));
  }
};

// What the producers do.
template <class T>
__device__ __forceinline__ void gather_keys(SharedStorage<T>& sm, const Segments& seg, const Maps& maps, Others& others) {
  const Params& p = seg.p;
  const Gather<T> gather{sm, seg};
  uint32_t n = 0;
  const int last = seg.part.r1;
#pragma unroll 1
  for (int r = seg.part.r0; r <= last; ++r) {
    int left = seg.count(r);
    if (left <= 0) continue;
    const int kv_len = seg.kv_len(r);
    const PageRow pages(p, r);
    int key = seg.begin(r) * T::kN + gather.own_key();
    int next = key < kv_len ? pages.page(p, key / p.page_size) : 0;
    gather.queries(n++, r, maps);
#pragma unroll 1
    for (; left > 0; --left, ++n, key += T::kN) {
      const int page = min(max(next, 0), p.pages - 1);
      if (key + T::kN < kv_len) next = pages.page(p, (key + T::kN) / p.page_size);
      gather.keys(n, page, key < kv_len ? key % p.page_size : -1);
      if (n == 1) others.wait();  // who waits for these loads
    }
  }
  if (n == 0) others.wait();
}

}  // namespace attile::cuda::mla_sm90
