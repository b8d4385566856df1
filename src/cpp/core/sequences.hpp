// Where the sequences of a batch lie in a [B, T, H, D] view: dense (all T long), padded (the first len_b rows of row b, by cu or
// by lens) or packed (one row of `rows` tokens, sequence b from cu[b] to cu[b + 1]).
#pragma once

#include "core/view.hpp"

namespace attile {

struct Sequences {
  int64_t batch = 0;
  int64_t rows = 0;     // extent of the view's token axis
  int64_t longest = 0;  // length of the longest sequence; at most `rows` is all that is known where lengths are on a device
  bool packed = false;
  IndexView cu;    // [batch + 1]; absent: dense
  IndexView lens;  // [batch], of a cache; never together with cu

  int64_t length(int64_t b) const { return cu ? cu[b + 1] - cu[b] : lens ? lens[b] : rows; }
  // Index into the view's batch axis, and the row where the sequence starts.
  int64_t batch_index(int64_t b) const { return packed ? 0 : b; }
  int64_t first_row(int64_t b) const { return packed ? cu[b] : 0; }
};

}  // namespace attile
