// An entry's TMA boxes: 64 columns of kN keys of a page, or of kN rows of queries. What lies past an edge of its array, such as a page
// that does not exist, reads as zero.
#pragma once

#include "cuda/mla_decode/sm90/traits.cuh"

namespace attile::cuda::mla_sm90 {

struct Maps {  // (column, row, page) of the keys, (column, row, request) of the queries
  CUtensorMap ckv, kpe, q_nope, q_pe;
};

template <class T>
__device__ __forceinline__ uint64_t load_policy(const Segments& seg) {
  // evict_first: with it, requests of blocks that read the same keys at the same time become one L2 access, too (docs/hopper-mla.md).
  const uint64_t first = policy_evict_first();
  if constexpr (T::kLongPart > 0) {
    const uint64_t normal = policy_evict_normal();
    return seg.part.left0 < T::kLongPart ? first : normal;
  }
  return first;
}

// The first row of an entry that holds queries of request r.
template <class T>
__device__ __forceinline__ int query_row(int at, int r, const Segments& seg) {
  return seg.q_first(r) * seg.p.heads + seg.m_block * T::kM + (kQ - at) * T::kN;
}
// Call these with one elected lane (elect.sync: under a plain thread test the compiler wraps each TMA instruction in a loop over the lanes).
// `kCount` boxes of 64 columns from box `first` on.
template <class T, int kCount>
__device__ __forceinline__ void load_boxes(uint8_t* to, const CUtensorMap& keys, const CUtensorMap& queries, int first, int at, int page,
                                           uint32_t full, uint64_t policy, const Segments& seg) {
  const uint32_t base = ptx::shared_address(to);
  if (at >= 0) {
#pragma unroll
    for (int c = 0; c < kCount; ++c) tma_load_3d(base + c * T::kBoxBytes, &keys, full, policy, (first + c) * 64, at, page);
  } else {
    const int row = query_row<T>(at, page, seg), batch = seg.q_batch(page);
#pragma unroll
    for (int c = 0; c < kCount; ++c) tma_load_3d(base + c * T::kBoxBytes, &queries, full, policy, (first + c) * 64, row, batch);
  }
}
template <class T, int kCount>
__device__ __forceinline__ void load_boxes(uint8_t* to, const CUtensorMap& keys, const CUtensorMap& queries, int first,
                                           const volatile Entry& e, uint32_t full, const Segments& seg) {
  const uint64_t policy = load_policy<T>(seg);
  ptx::mbarrier_arrive_expect(full, kCount * T::kBoxBytes);
  const int at = e.at, page = e.page;
  load_boxes<T, kCount>(to, keys, queries, first, at, page, full, policy, seg);
}

// Columns from `column` on of rows of queries, known before any entry is.
template <class T, int kCount>
__device__ __forceinline__ void load_queries(uint8_t* to, const CUtensorMap& queries, int column, int row, int batch, uint32_t full,
                                             const Segments& seg) {
  const uint64_t policy = load_policy<T>(seg);
  const uint32_t base = ptx::shared_address(to);
#pragma unroll
  for (int c = 0; c < kCount; ++c) tma_load_3d(base + c * T::kBoxBytes, &queries, full, policy, column + c * 64, row, batch);
}

// A half of block n's latents.
template <class T>
__device__ __forceinline__ void load_latent(SharedStorage<T>& sm, uint32_t n, int half, const volatile Entry& e, const Maps& maps,
                                            const Segments& seg) {
  load_boxes<T, T::kHalfBoxes>(sm.half_of(n, half)[0], maps.ckv, maps.q_nope, half * T::kHalfBoxes, e,
                               sm.pipe.latent_barrier(n, half), seg);
}
// All of block n, kBoxRows rows of it after the others.
template <class T>
__device__ __forceinline__ void load_block(SharedStorage<T>& sm, uint32_t n, const volatile Entry& e, const Maps& maps,
                                           const Segments& seg) {
  const uint64_t policy = load_policy<T>(seg);
  const uint32_t full[] = {sm.pipe.latent_barrier(n, 0), sm.pipe.latent_barrier(n, 1), sm.pipe.rope_barrier(n)};
#pragma unroll
  for (int i = 0; i < 3; ++i) ptx::mbarrier_arrive_expect(full[i], i < 2 ? T::kLatentBytes / 2 : T::kRopeBytes);
  const bool keys = e.at >= 0;
  const int at = e.at, r = e.page, outer = keys ? r : seg.q_batch(r);
  const int row = keys ? at : query_row<T>(at, r, seg);
  const int rope = seg.p.rope == 0 ? T::kLatentBoxes * 64 : 0;
  const CUtensorMap &latents = keys ? maps.ckv : maps.q_nope, &ropes = keys ? maps.kpe : maps.q_pe;
  const uint32_t to = ptx::shared_address(sm.half_of(n, 0)), rope_to = ptx::shared_address(sm.rope[sm.pipe.rope_place(n)]);
#pragma unroll 1
  for (int i = 0; i < T::kN; i += T::kBoxRows) {
#pragma unroll
    for (int c = 0; c < T::kLatentBoxes; ++c)
      tma_load_3d(to + c * T::kBoxBytes + i * 128, &latents, full[c / T::kHalfBoxes], policy, c * 64, row + i, outer);
#pragma unroll
    for (int c = 0; c < T::kRopeBoxes; ++c)
      tma_load_3d(rope_to + c * T::kBoxBytes + i * 128, &ropes, full[2], policy, rope + c * 64, row + i, outer);
  }
}

// Without a rope part the columns asked for lie past the array, and S gains nothing.
template <class T>
__device__ __forceinline__ void load_rope(SharedStorage<T>& sm, uint32_t n, const volatile Entry& e, const Maps& maps,
                                          const Segments& seg) {
  uint8_t* to = sm.rope[sm.pipe.rope_place(n)][0];
  if (T::kHeadRope && e.at <= kQ)
    load_boxes<T, 1>(to, maps.kpe, maps.q_pe, 0, e, sm.pipe.rope_barrier(n), seg);  // a head's own columns
  else
    load_boxes<T, T::kRopeBoxes>(to, maps.kpe, maps.q_pe, seg.p.rope == 0 ? T::kLatentBoxes : 0, e, sm.pipe.rope_barrier(n), seg);
}

}  // namespace attile::cuda::mla_sm90
