// Which keys a query may see by position: causal and sliding windows are one band, q + shift - left <= k <= q + shift + right,
// cut to the keys that exist. Three questions: keys() for a block of queries, full() for a tile, seen() for one pair.
// attention_mask, segment ids and a bias of -inf depend on data and are tested element by element, beside this.
#pragma once

#include <algorithm>
#include <cstdint>

namespace attile {

struct Range {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
};

struct Mask {
  static constexpr int64_t kUnlimited = int64_t{1} << 60;

  int64_t left = kUnlimited;   // keys before the diagonal that are seen
  int64_t right = kUnlimited;  // keys after it
  int64_t shift = 0;           // bottom_right: seqlen_k - seqlen_q
  int64_t seqlen_k = 0;

  // The smallest range that holds every key seen by a query of [q0, q1).
  Range keys(int64_t q0, int64_t q1) const {
    if (q0 >= q1) return {0, 0};
    const int64_t begin = std::clamp<int64_t>(q0 + shift - left, 0, seqlen_k);
    const int64_t end = std::clamp<int64_t>(q1 - 1 + shift + right + 1, 0, seqlen_k);
    return {begin, std::max(begin, end)};
  }
  // Whether every query of [q0, q1) sees every key of [k0, k1).
  bool full(int64_t q0, int64_t q1, int64_t k0, int64_t k1) const {
    return k0 >= q1 - 1 + shift - left && k1 - 1 <= q0 + shift + right && k0 >= 0 && k1 <= seqlen_k;
  }
  bool seen(int64_t q, int64_t k) const {
    return k >= q + shift - left && k <= q + shift + right && k >= 0 && k < seqlen_k;
  }
};

}  // namespace attile
