// The rows of a tile of keys: where ckv and kpe of each lie, through the page table where there is one.
#pragma once

#include "cpu/mla_decode/unit.hpp"
#include "cpu/simd/vector.hpp"

namespace attile::ATTILE_ISA {

struct KeyRow {
  const char *ckv, *kpe;
};

// Whether all rows lie at the strides, one behind another.
inline bool in_order(const MlaDecodeUnit& m) { return m.base.pages.entries == nullptr; }

// Rows of keys [begin, end).
inline void find_keys(const MlaDecodeUnit& m, int64_t begin, int64_t end, KeyRow* rows) {
  const Unit& u = m.base;
  if (in_order(m)) {
    for (int64_t j = begin; j < end; ++j) *rows++ = {u.k + j * u.k_stride, m.kpe + j * m.kpe_stride};
    return;
  }
  int64_t n = begin / u.pages.page_size, in_page = begin - n * u.pages.page_size;
  while (begin < end) {
    const char* entry = u.pages.entries + n++ * u.pages.stride;
    const int64_t page = u.pages.dtype == DType::i64 ? load<int64_t>(entry) : int64_t{load<int32_t>(entry)};
    const int64_t left = end - begin, here = u.pages.page_size - in_page < left ? u.pages.page_size - in_page : left;
    const char* ckv = u.k + page * u.pages.k_page + in_page * u.k_stride;
    const char* kpe = m.kpe + page * m.kpe_page + in_page * m.kpe_stride;
    for (int64_t j = 0; j < here; ++j) *rows++ = {ckv + j * u.k_stride, kpe + j * m.kpe_stride};
    begin += here;
    in_page = 0;
  }
}

// The rows of the block of keys behind `end`: this unit's, or the next one's first. Returns how many.
inline int64_t find_next_keys(const MlaDecodeUnit& m, int64_t end, KeyRow* rows) {
  const bool more = end < m.base.key_end;
  const MlaDecodeUnit* next = more ? &m : m.next(m.path);
  if (!next) return 0;
  const MlaDecodeUnit& unit = *next;
  const int64_t begin = more ? end : unit.base.key_begin, left = unit.base.key_end - begin;
  const int64_t count = left < m.base.block_k ? left : m.base.block_k;
  find_keys(unit, begin, begin + count, rows);
  return count;
}

}  // namespace attile::ATTILE_ISA
