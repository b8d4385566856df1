// What index arrays say of a request, clamped to what the shapes allow; of a wide number its lower half, which one that is allowed fits.
#pragma once

#include "cuda/mla_decode/sm90/params.hpp"

namespace attile::cuda::mla_sm90 {

__device__ __forceinline__ int index_at(const Indices& x, int i) { return __ldg(reinterpret_cast<const int*>(x.data + i * x.stride)); }
__device__ __forceinline__ int clamped(int x, int low, int high) { return max(min(x, high), low); }

__device__ __forceinline__ int kv_len_of(const Params& p, int r) {
  return p.kv_lens.data ? clamped(index_at(p.kv_lens, r), 0, p.kv_most) : p.kv_most;
}
// Of packed queries.
__device__ __forceinline__ int q_first_of(const Params& p, int r) { return clamped(index_at(p.cu_seqlens_q, r), 0, p.q_tokens); }
__device__ __forceinline__ int q_len_of(const Params& p, int r) {
  const int first = q_first_of(p, r);
  return clamped(index_at(p.cu_seqlens_q, r + 1), first, min(p.q_tokens, first + p.seqlen_q)) - first;
}
// Of a page table that is one list.
__device__ __forceinline__ int page_begin_of(const Params& p, int r) {
  return clamped(index_at(p.page_begin, r), 0, max(p.table_entries - 1, 0));
}
// Entry n of the pages of request r; of a wide one its lower half, which a page that exists fits.
__device__ __forceinline__ const char* page_entry(const Params& p, int r, int n) {
  int64_t at = n;
  if (p.page_begin.data) at = min(static_cast<int64_t>(page_begin_of(p, r)) + n, static_cast<int64_t>(p.table_entries) - 1);
  return p.page_table + r * p.table_row + at * p.table_entry;
}

}  // namespace attile::cuda::mla_sm90
