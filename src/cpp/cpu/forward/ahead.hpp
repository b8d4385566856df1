// What is read next, asked for into L2 while the products run: the rows of K and V of the next tile, which lie a page apart where heads
// are neighbours in memory, and the bias and the mask of the next panel, a piece of every row. No hardware looks so far ahead.
//
// The pace is even, a few lines a chunk of head dims or keys: a core has some dozen line buffers, and whoever finds none waits.
#pragma once

#include "cpu/forward/rows.hpp"

namespace attile::ATTILE_ISA {

inline constexpr int64_t kLine = 64;

inline const char* line_of(const char* p) { return p - reinterpret_cast<uintptr_t>(p) % kLine; }

// How many of `lines` lines are asked for at each of `calls` calls.
class Pace {
 public:
  Pace() = default;
  Pace(int64_t lines, int64_t calls) : step_(calls > 0 ? lines * kOne / calls + 1 : 0) {}
  int64_t take() {
    credit_ += step_;
    const int64_t lines = credit_ / kOne;
    credit_ %= kOne;
    return lines;
  }

 private:
  static constexpr uint64_t kOne = 256;
  uint64_t step_ = 0, credit_ = 0;
};

// `bytes` of each of `count` rows of bias or mask, from byte `first` on.
class RowsAhead {
 public:
  RowsAhead() = default;
  RowsAhead(const QueryRow* rows, int64_t count, const char* QueryRow::* field, int64_t first, int64_t bytes, int64_t calls)
      : row_(rows),
        end_(rows + count),
        field_(field),
        first_(first),
        bytes_(bytes > 0 ? bytes : 1),
        pace_(count * (bytes_ / kLine + 1), calls) {
    if (row_ != end_) find();
  }

  inline __attribute__((always_inline)) void ask() {
    for (int64_t n = pace_.take(); n > 0 && row_ != end_; --n) {
      __builtin_prefetch(at_, 0, 2);
      at_ += kLine;
      if (at_ >= stop_ && ++row_ != end_) find();
    }
  }

 private:
  const QueryRow *row_ = nullptr, *end_ = nullptr;
  const char* QueryRow::* field_ = nullptr;
  int64_t first_ = 0, bytes_ = 0;
  Pace pace_;
  const char *at_ = nullptr, *stop_ = nullptr;

  void find() {
    const char* begin = row_->*field_ + first_;
    at_ = line_of(begin);
    stop_ = begin + bytes_;
  }
};

// Rows of K and V of keys [begin, end), in turn.
class KeysAhead {
 public:
  KeysAhead() = default;
  KeysAhead(const Unit& unit, int64_t begin, int64_t end, int64_t calls) : unit_(&unit), key_(begin), end_(end) {
    const int64_t element = element_bytes(unit.dtype);
    bytes_[0] = unit.head_dim * element;
    bytes_[1] = unit.head_dim_v * element;
    if (key_ >= end_) return;
    pace_ = {(end_ - key_) * ((bytes_[0] + bytes_[1]) / kLine + 1), calls};
    find();
  }

  inline __attribute__((always_inline)) void ask() {
    for (int64_t n = pace_.take(); n > 0 && key_ < end_; --n) {
      __builtin_prefetch(at_, 0, 2);
      at_ += kLine;
      if (at_ < stop_) continue;
      key_ += side_;
      side_ = 1 - side_;
      if (key_ < end_) find();
    }
  }

 private:
  const Unit* unit_ = nullptr;
  int64_t key_ = 0, end_ = 0, bytes_[2] = {};
  int side_ = 0;  // 0: K, 1: V
  Pace pace_;
  const char *at_ = nullptr, *stop_ = nullptr;

  void find() {
    const Unit& u = *unit_;
    const int64_t stride = side_ ? u.v_stride : u.k_stride;
    const char* begin = side_ ? u.v : u.k;
    begin += u.pages.entries ? paged_offset(u.pages, key_, side_ ? u.pages.v_page : u.pages.k_page, stride) : key_ * stride;
    at_ = line_of(begin);
    stop_ = begin + bytes_[side_];
  }
};

struct Ahead {
  KeysAhead keys;
  RowsAhead bias, mask;

  inline __attribute__((always_inline)) void operator()() {
    keys.ask();
    bias.ask();
    mask.ask();
  }
};

}  // namespace attile::ATTILE_ISA
