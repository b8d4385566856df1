// The lines of the cache that the next keys will need, asked for while these are computed, at an even pace.
//
// A line that an instruction asks for holds one of the core's 16 fill buffers until memory answers, and the products' own loads from L2
// wait for a buffer too. The L2's prefetcher has queues of its own and runs ahead of ascending lines within a page. So a block is
// asked for as several streams, pages apart, a line of each in turn: while the prefetcher starts on one stream's next page it is
// ahead in the others, and most lines asked for are in L2 already.
#pragma once

#include "cpu/mla_decode/keys.hpp"

namespace attile::ATTILE_ISA {

struct PrefetchRun {
  const char *begin, *end;
};

template <int kStreams>
class Prefetcher {
 public:
  // `runs`: one for each row of ckv and of kpe.
  explicit Prefetcher(PrefetchRun* runs) : runs_(runs), last_(runs) {}

  // The rows of a block, neighbours joined; `cost` is what advance() will be told in sum until the block is needed.
  void plan(const KeyRow* rows, int64_t count, int64_t ckv_bytes, int64_t kpe_bytes, int64_t cost) {
    last_ = runs_;
    const bool joined = count > 0 && rows[0].kpe == rows[0].ckv + ckv_bytes;
    join(count, joined ? ckv_bytes + kpe_bytes : ckv_bytes, [rows](int64_t j) { return rows[j].ckv; });
    if (!joined && kpe_bytes > 0) join(count, kpe_bytes, [rows](int64_t j) { return rows[j].kpe; });
    int64_t lines = 0;
    for (const PrefetchRun* run = runs_; run < last_; ++run) lines += lines_of(*run);
    rounds_ = (lines + kStreams - 1) / kStreams;
    credit_ = 0;
    pace_ = cost > 0 ? (rounds_ << kFraction) / cost + 1 : 0;
    if (rounds_ > 0) part();
  }

  // Everything inline: a call would cost the multiply-adds around it their registers.
  inline __attribute__((always_inline)) void advance(int64_t cost) {
    credit_ += cost * pace_;
    while (credit_ >= int64_t{1} << kFraction) {
      if (rounds_ == 0) {
        pace_ = credit_ = 0;
        return;
      }
      credit_ -= int64_t{1} << kFraction;
      --rounds_;
#pragma GCC unroll 8
      for (int i = 0; i < kStreams; ++i) {
        __builtin_prefetch(at_[i], 0, 2);
        at_[i] += kLine;
        if (__builtin_expect(at_[i] >= end_[i], 0)) go_on(i);
      }
    }
  }

 private:
  static constexpr int kFraction = 10;
  static constexpr int64_t kLine = 64;
  PrefetchRun *runs_, *last_;
  const char *at_[kStreams] = {}, *end_[kStreams] = {};  // of the run that a stream is in
  const PrefetchRun* next_[kStreams] = {};
  int64_t rounds_ = 0, credit_ = 0, pace_ = 0;

  static int64_t lines_of(const PrefetchRun& run) { return (run.end - run.begin + kLine - 1) / kLine; }

  template <class At>
  void join(int64_t count, int64_t bytes, At at) {
    for (int64_t j = 0; j < count;) {
      PrefetchRun run = {at(j), at(j)};
      do run.end += bytes;
      while (++j < count && at(j) == run.end);
      *last_++ = run;
    }
  }

  // Each stream begins rounds_ lines behind the one before it.
  void part() {
    const PrefetchRun* run = runs_;
    int64_t before = 0;  // lines of the runs before this one
    for (int i = 0; i < kStreams; ++i) {
      const int64_t first = i * rounds_;
      while (run + 1 < last_ && before + lines_of(*run) <= first) before += lines_of(*run++);
      at_[i] = run->begin + (first - before) * kLine;
      end_[i] = run->end;
      next_[i] = run + 1;
      if (at_[i] >= end_[i]) go_on(i);
    }
  }

  // To the stream's next run; behind the last one, where rounding up leaves a few rounds, to a last line again.
  inline __attribute__((always_inline)) void go_on(int i) {
    if (next_[i] < last_) {
      at_[i] = next_[i]->begin;
      end_[i] = next_[i]++->end;
    } else {
      at_[i] = end_[i] - kLine;
    }
  }
};

}  // namespace attile::ATTILE_ISA
