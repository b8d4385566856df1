// The lines of memory that the next keys will need, asked for while these are computed, at an even pace, into L2.
//
// A line that an instruction asks for holds one of the core's 16 fill buffers until memory answers, and the products' own loads from L2
// wait for a buffer too. The L2's prefetcher has queues of its own and runs ahead of ascending lines within a page. So what is
// asked for is several streams, pages apart, a line of each in turn: while the prefetcher starts on one stream's next page it is
// ahead in the others, and most lines asked for are in L2 already.
#pragma once

#include <cstdint>

#include "cpu/simd/vector.hpp"

namespace attile::ATTILE_ISA {

struct AheadRun {
  const char *begin, *end;
};

template <int kStreams>
class Ahead {
 public:
  Ahead() = default;  // asks for nothing
  // `room`: for as many runs as rows are added.
  explicit Ahead(AheadRun* room) : runs_(room), last_(room) {}

  void clear() { last_ = runs_; }

  // `count` rows, the first bytes of which are at(0), at(1) and so on; neighbours are joined.
  template <class At>
  void add(int64_t count, int64_t bytes, At at) {
    for (int64_t j = 0; j < count;) {
      AheadRun run = {at(j), at(j)};
      do run.end += bytes;
      while (++j < count && at(j) == run.end);
      *last_++ = run;
    }
  }

  // What was added is asked for from now on. `cost` is what advance() will be told in sum until the lines are needed.
  void start(int64_t cost = 0) {
    int64_t lines = 0;
    for (const AheadRun* run = runs_; run < last_; ++run) lines += lines_of(*run);
    rounds_ = (lines + kStreams - 1) / kStreams;
    credit_ = left_ = 0;
    pace_ = cost > 0 ? (rounds_ << kFraction) / cost + 1 : 0;
    if (rounds_ > 0) part();
  }

  // Everything inline: a call would cost the multiply-adds around it their registers.
  inline __attribute__((always_inline)) void advance(int64_t cost) {
    credit_ += cost * pace_;
    for (; credit_ >= int64_t{1} << kFraction; credit_ -= int64_t{1} << kFraction) ask();
  }

  // A line for each that is loaded.
  template <int kBytes>
  inline __attribute__((always_inline)) void keep_pace() {
    constexpr int64_t kRound = kStreams * kLine;
#pragma GCC unroll 16
    for (int i = 0; i < kBytes / kRound; ++i) ask();
    if constexpr (kBytes % kRound != 0) {
      credit_ += kBytes % kRound;
      if (credit_ < kRound) return;
      credit_ -= kRound;
      ask();
    }
  }

 private:
  static constexpr int kFraction = 16;
  static constexpr int64_t kLine = 64;
  AheadRun *runs_ = nullptr, *last_ = nullptr;
  const char *at_[kStreams] = {}, *end_[kStreams] = {};  // of the run that a stream is in
  const AheadRun* next_[kStreams] = {};
  int64_t done_ = 0, left_ = 0;  // bytes behind at_ that were asked for; rounds until some run ends
  int64_t rounds_ = 0, credit_ = 0, pace_ = 0;

  static int64_t lines_of(const AheadRun& run) { return (run.end - run.begin + kLine - 1) / kLine; }

  // A line of each stream.
  inline __attribute__((always_inline)) void ask() {
    if (__builtin_expect(left_ == 0, 0)) {
      if (rounds_ == 0) return;
      go_on();
    }
    --left_;
#pragma GCC unroll 8
    for (int i = 0; i < kStreams; ++i) __builtin_prefetch(at_[i] + done_, 0, 2);
    done_ += kLine;
  }

  // Each stream begins rounds_ lines behind the one before it.
  void part() {
    const AheadRun* run = runs_;
    int64_t before = 0;  // lines of the runs before this one
    for (int i = 0; i < kStreams; ++i) {
      const int64_t first = i * rounds_;
      while (run + 1 < last_ && before + lines_of(*run) <= first) before += lines_of(*run++);
      at_[i] = run->begin + (first - before) * kLine;
      end_[i] = run->end;
      next_[i] = run + 1;
    }
    done_ = 0;
  }

  // Streams whose run has ended to their next one; behind the last one, where rounding up leaves a few rounds, to its last line again.
  inline __attribute__((always_inline)) void go_on() {
    left_ = rounds_;
    for (int i = 0; i < kStreams; ++i) {
      at_[i] += done_;
      if (at_[i] >= end_[i]) {
        if (next_[i] < last_) {
          at_[i] = next_[i]->begin;
          end_[i] = next_[i]++->end;
        } else {
          at_[i] = end_[i] - kLine;
        }
      }
      const int64_t lines = (end_[i] - at_[i] + kLine - 1) / kLine;
      left_ = lines < left_ ? lines : left_;
    }
    rounds_ -= left_;
    done_ = 0;
  }
};

}  // namespace attile::ATTILE_ISA
