// What is needed next, asked for into L2 while the products run: the rows of K and V of the next tile, which lie a page apart where heads
// are neighbours in memory, and of the next panel a piece of every row of bias and mask, in the first tile Q and in the last one
// out. No hardware looks so far ahead.
//
// The pace is even, the same few lines at every call, one call a chunk of head dims or keys: a core has some dozen line buffers, and
// whoever finds none waits. A call stands between multiply-adds, so it has no branch but the end of a row, and asks for a little too much.
#pragma once

#include "cpu/forward/rows.hpp"

namespace attile::ATTILE_ISA {

inline constexpr int64_t kLine = 64;

// Lines that `bytes` at any address may touch.
inline int64_t lines_of(int64_t bytes) { return bytes > 0 ? (bytes + kLine - 2) / kLine + 1 : 0; }

inline __attribute__((always_inline)) void ask_lines(const char* at, int64_t lines) {
  for (int64_t n = 0; n < lines; ++n) __builtin_prefetch(at + n * kLine, 0, 2);
}

// How many of `lines` lines a row are asked for at once, when `calls` calls are to see `rows` rows.
inline int64_t lines_a_call(int64_t lines, int64_t rows, int64_t calls) {
  const int64_t visits = rows > 0 && calls > rows ? calls / rows : 1;
  return (lines + visits - 1) / visits;
}

// `bytes` of each of `count` rows of q, bias, mask or out, from byte `first` on: some lines of every row, then the next lines of every row.
class RowsAhead {
 public:
  RowsAhead() = default;
  // first_row: that field of the first row which is the address
  template <class Address>
  RowsAhead(const Address& first_row, int64_t count, int64_t first, int64_t bytes, int64_t calls)
      : rows_(reinterpret_cast<const char*>(&first_row)),
        count_(count),
        offset_(first),
        end_(first + lines_of(bytes) * kLine),
        lines_(lines_a_call(lines_of(bytes), count, calls)) {}

  inline __attribute__((always_inline)) void ask() {
    if (offset_ >= end_) return;
    ask_lines(load<const char*>(rows_ + row_ * static_cast<int64_t>(sizeof(QueryRow))) + offset_, lines_);
    if (++row_ < count_) return;
    row_ = 0;
    offset_ += lines_ * kLine;
  }

 private:
  const char* rows_ = nullptr;
  int64_t row_ = 0, count_ = 0, offset_ = 0, end_ = 0, lines_ = 0;
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
    lines_ = lines_a_call((lines_of(bytes_[0]) + lines_of(bytes_[1]) + 1) / 2, 2 * (end_ - key_), calls);
    find();
  }

  inline __attribute__((always_inline)) void ask() {
    if (key_ >= end_) return;
    ask_lines(at_, lines_);
    at_ += lines_ * kLine;
    if (at_ < stop_) return;
    key_ += side_;
    side_ = 1 - side_;
    if (key_ < end_) find();
  }

 private:
  const Unit* unit_ = nullptr;
  int64_t key_ = 0, end_ = 0, lines_ = 0, bytes_[2] = {};
  int side_ = 0;  // 0: K, 1: V
  const char *at_ = nullptr, *stop_ = nullptr;

  void find() {
    const Unit& u = *unit_;
    const int64_t stride = side_ ? u.v_stride : u.k_stride;
    at_ = side_ ? u.v : u.k;
    at_ += u.pages.entries ? paged_offset(u.pages, key_, side_ ? u.pages.v_page : u.pages.k_page, stride) : key_ * stride;
    stop_ = at_ + bytes_[side_];
  }
};

class Ahead {
 public:
  KeysAhead keys;

  void begin_panel() { count_ = 0; }
  void add(const RowsAhead& rows) { rows_[count_++] = rows; }

  inline __attribute__((always_inline)) void operator()() {
    keys.ask();
    for (int i = 0; i < count_; ++i) rows_[i].ask();
  }

 private:
  RowsAhead rows_[4];  // q, bias, mask, out
  int count_ = 0;
};

}  // namespace attile::ATTILE_ISA
