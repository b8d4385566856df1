// Where the rows of K and V of a unit lie, in memory at one stride, in pages or made by an operation, and the ids of its keys.
#pragma once

#include "cpu/forward/scores.hpp"

namespace attile::ATTILE_ISA {

// The number of the page that holds key j, times page_bytes, and the key's place in it.
inline int64_t paged_offset(const PageRow& pages, int64_t j, int64_t page_bytes, int64_t stride) {
  const int64_t page = j / pages.page_size;
  const char* entry = pages.entries + page * pages.stride;
  const int64_t number = pages.dtype == DType::i64 ? load<int64_t>(entry) : int64_t{load<int32_t>(entry)};
  return number * page_bytes + (j - page * pages.page_size) * stride;
}

// Calls f with two functions: the addresses of K's and V's row of key `begin + j`.
template <class F>
inline void with_rows(const Unit& u, int64_t begin, F f) {
  if (u.pages.entries) {
    f([&u, begin](int64_t j) { return u.k + paged_offset(u.pages, begin + j, u.pages.k_page, u.k_stride); },
      [&u, begin](int64_t j) { return u.v + paged_offset(u.pages, begin + j, u.pages.v_page, u.v_stride); });
  } else {
    if (u.maker.make) begin = 0;
    f([k = u.k + begin * u.k_stride, stride = u.k_stride](int64_t j) { return k + j * stride; },
      [v = u.v + begin * u.v_stride, stride = u.v_stride](int64_t j) { return v + j * stride; });
  }
}

// Ids of keys [begin, begin + keys), negative ones replaced.
inline void read_key_ids(const Unit& u, int64_t begin, int64_t keys) {
  if (u.key_ids == nullptr) return;
  for (int64_t j = 0; j < keys; ++j) {
    const char* from = u.key_ids + (begin + j) * u.key_ids_stride;
    int64_t id;
    if (u.key_ids_dtype == DType::i64) {
      id = load<int64_t>(from);
    } else {
      id = load<int32_t>(from);
    }
    u.scratch.ids[j] = id < 0 ? kNoKey : id;
  }
}

}  // namespace attile::ATTILE_ISA
