// Words that host and device share: the kinds of kernels, and what the producer tells the consumers about an output tile.
#pragma once

#include <cstdint>

namespace attile::cuda::sm90 {

// All else is a run-time field. kFull, kCausal (bottom right): sequences of one length. kBand: also packed and padded sequences, windows of
// either alignment, sinks. kSegments: kBand and segment ids; kMask: a mask; kCap: a soft cap; kBias: a bias that TMA can read. kScores: all
// of these at once, and any bias of the inputs' type.
enum class Kind { kFull, kCausal, kBand, kSegments, kMask, kCap, kBias, kScores };

struct Work {
  int m, head, batch;          // batch: the sequence; one more than there are: rows of a packed array past the last
  int j_begin, j_end;          // key tiles, walked from the last to the first; at least one. No work: j_end = 0
  int seqlen_q, seqlen_k;      // of this sequence
  int row0_q, row0_k;          // of its first query and key in a packed array
  int clean_begin, clean_end;  // key tiles that all these queries see: of their document, or without a zero in the mask
};

}  // namespace attile::cuda::sm90
