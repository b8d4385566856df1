// New rows into the pages of two caches: row t of tokens[i] to caches[i][page, row of the page].
#pragma once

#include <span>

#include "core/view.hpp"

namespace attile {

struct TokenPlace {
  int32_t page, row;
};

struct PagedAppend {
  View tokens[2];  // [1, 1, n, dim]
  View caches[2];  // [1, pages, page_size, dim], of the same dtype
  // Where token t goes: places[t] where the index arrays were on the host, else position positions[t] of sequence batch_indices[t], whose
  // pages begin at kv_indices[kv_indptr[b]]; what breaks the contract is not written.
  bool placed = false;
  std::span<const TokenPlace> places;
  IndexView batch_indices, positions, kv_indices, kv_indptr, kv_last_page_len;
};

}  // namespace attile
