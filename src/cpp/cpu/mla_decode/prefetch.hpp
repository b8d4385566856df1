// The lines of the cache that the next block of keys will need, asked for while this one is computed: in small parts at an even pace,
// for a core waits when it asks for more than a dozen lines at once.
#pragma once

#include "cpu/mla_decode/keys.hpp"

namespace attile::ATTILE_ISA {

// Asks for the lines of a list of byte ranges, some at a time, at an even pace.
class Prefetcher {
 public:
  struct Run {
    const char *begin, *end;
  };

  explicit Prefetcher(Run* runs) : runs_(runs), at_(nullptr), end_(nullptr), next_(runs), last_(runs), credit_(0), pace_(0) {}

  // The rows of a block, neighbours joined; `cost` is what advance() will be told in sum until the block is needed.
  void plan(const KeyRow* rows, int64_t count, int64_t ckv_bytes, int64_t kpe_bytes, int64_t cost) {
    next_ = last_ = runs_;
    at_ = end_ = nullptr;
    int64_t lines = 0;
    const bool joined = count > 0 && rows[0].kpe == rows[0].ckv + ckv_bytes;
    for (int64_t j = 0; j < count; ++j) lines += add(rows[j].ckv, joined ? ckv_bytes + kpe_bytes : ckv_bytes);
    for (int64_t j = 0; !joined && kpe_bytes > 0 && j < count; ++j) lines += add(rows[j].kpe, kpe_bytes);
    credit_ = 0;
    pace_ = cost > 0 ? (lines << kFraction) / cost + 1 : 0;
  }

  inline __attribute__((always_inline)) void advance(int64_t cost) {
    credit_ += cost * pace_;
    for (; credit_ >= (int64_t{1} << kFraction); credit_ -= int64_t{1} << kFraction) {
      if (at_ >= end_) {
        if (next_ == last_) {
          pace_ = credit_ = 0;
          return;
        }
        at_ = next_->begin;
        end_ = next_++->end;
      }
      __builtin_prefetch(at_, 0, 2);
      at_ += 64;
    }
  }

 private:
  static constexpr int kFraction = 10;
  Run* runs_;
  const char *at_, *end_;
  Run *next_, *last_;
  int64_t credit_, pace_;

  int64_t add(const char* begin, int64_t bytes) {
    if (last_ != runs_ && last_[-1].end == begin) {
      last_[-1].end += bytes;
    } else {
      *last_++ = {begin, begin + bytes};
    }
    return (bytes + 63) / 64;
  }
};

}  // namespace attile::ATTILE_ISA
