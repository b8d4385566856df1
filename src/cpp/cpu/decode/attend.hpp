// Attention of few query rows, bound by reading K and V: once, straight from memory, no copies.
//
//   for blocks of keys:  for key heads:  for blocks of rows:  S = Q K^T;  P = softmax;  out = alpha out + P V
//
// Keys come first in the loops and heads second, since the heads of a key lie side by side in a [B,T,H,D] cache. Cost a key and
// head: (head_dim + head_dim_v) elements read, 2 rows (head_dim + head_dim_v) operations in whole vectors; the reduction of the dot
// products adds a third of an instruction for each of theirs at head_dim 128, the softmax 15 for each vector of scores.
// Limits: the number of rows, since K and V are used from L1 again for every kMostRows of them.
#pragma once

#include "cpu/decode/block.hpp"

namespace attile::ATTILE_ISA {

// Scores are taken as they come out of the dot products, with the sign of the factor in q: exp2((s - max) c), c > 0. A factor of 0
// makes q 0. Capped ones are natural.
inline double query_factor(double softmax_scale) { return softmax_scale > 0 ? 1 : softmax_scale < 0 ? -1 : 0; }
inline double natural_scale(double softmax_scale, double softcap) {
  return softcap != 0 || softmax_scale == 0 ? 1 : softmax_scale < 0 ? -softmax_scale : softmax_scale;
}

// How many of `left` rows the next block takes.
inline int64_t next_rows(int64_t left, int64_t most) {
  int64_t rows = 1;
  while (2 * rows <= left && 2 * rows <= most) rows *= 2;
  return rows;
}

template <class T>
inline int64_t most_rows(const DecodeUnit& u) {
  return u.row_step && u.row_step < kMostRows<T> ? u.row_step : kMostRows<T>;
}

template <class Format>
inline int64_t padded_dim(int64_t dim) {
  return (dim + Format::kElements - 1) / Format::kElements * Format::kElements;
}

// [head][first row of a block][unit][part][row][lanes]; pairs of bfloat16 take half of the room.
template <class Format>
inline void pack_decode_queries(const DecodeUnit& u) {
  using T = typename Format::Accumulator;
  constexpr int W = kLanes<T>, kQueryParts = Format::kPairs ? 1 : Format::kParts;
  constexpr int64_t kSize = sizeof(typename Format::Storage);
  const T factor = static_cast<T>(query_factor(u.softmax_scale));
  const int64_t dim = padded_dim<Format>(u.head_dim);
  for (int64_t h = u.keys.head_begin; h < u.keys.head_end; ++h) {
    for (int64_t first = 0, rows; first < u.rows; first += rows) {
      rows = next_rows(u.rows - first, most_rows<T>(u));
      T* to = static_cast<T*>(u.queries) + (h * u.rows + first) * dim;
      for (int64_t r = 0; r < rows; ++r) {
        const char* q = u.q + (first + r) / u.group * u.q_position + (h * u.group + (first + r) % u.group) * u.q_head;
        for (int64_t d = 0, unit = 0; d < u.head_dim; d += Format::kElements, ++unit) {
          const auto raw = load_unit<Format>(q + d * kSize, u.head_dim - d);
          for (int part = 0; part < kQueryParts; ++part) {
            Vec<T> x;
            if constexpr (Format::kPairs) {
              const Vec<T> even = Format::part(raw, 0) * factor, odd = Format::part(raw, 1) * factor;
              x = bit_cast<Vec<T>>((bit_cast<Vec<uint32_t>>(even) >> 16) | (bit_cast<Vec<uint32_t>>(odd) & 0xFFFF0000u));
            } else {
              x = Format::part(raw, part) * factor;
            }
            store(to + ((unit * kQueryParts + part) * rows + r) * W, x);
          }
        }
      }
    }
  }
}

// Addresses of the rows of keys [begin, end), of head 0; the room behind them is filled with the last.
inline void find_rows(const DecodeUnit& u, const DecodeKeys& keys, int64_t begin, int64_t end, const char** k, const char** v) {
  if (begin >= end) return;
  int64_t j = begin;
  if (keys.pages.entries == nullptr) {
    for (; j < end; ++j, ++k, ++v) {
      *k = keys.k + j * u.k_stride;
      *v = keys.v + j * u.v_stride;
    }
  } else {
    const PageRow& pages = keys.pages;
    int64_t page = j / pages.page_size, place = j % pages.page_size;
    while (j < end) {
      const char* entry = pages.entries + page * pages.stride;
      int64_t number;
      if (pages.dtype == DType::i64) {
        number = load<int64_t>(entry);
      } else {
        number = load<int32_t>(entry);
      }
      const char* k_row = keys.k + number * pages.k_page + place * u.k_stride;
      const char* v_row = keys.v + number * pages.v_page + place * u.v_stride;
      for (; place < pages.page_size && j < end; ++place, ++j, k_row += u.k_stride, v_row += u.v_stride) {
        *k++ = k_row;
        *v++ = v_row;
      }
      ++page;
      place = 0;
    }
  }
  for (; j < begin + u.block_room; ++j, ++k, ++v) {
    *k = k[-1];
    *v = v[-1];
  }
}

// Adds the rows of one array of a block: all heads of a key at once where they are neighbours, else in the order of memory.
inline void add_rows(const char* const* rows, int64_t keys, const DecodeKeys& of, int64_t key_stride, int64_t head_stride, int64_t bytes,
                     NextBlock& next) {
  const int64_t heads = of.head_end - of.head_begin, first = of.head_begin * head_stride;
  if (head_stride == bytes) {
    next.add(keys, heads * bytes, [=](int64_t j) { return rows[j] + first; });
  } else if (head_stride < key_stride) {
    for (int64_t j = 0; j < keys; ++j) next.add(heads, bytes, [=](int64_t h) { return rows[j] + first + h * head_stride; });
  } else {
    for (int64_t h = 0; h < heads; ++h) next.add(keys, bytes, [=](int64_t j) { return rows[j] + first + h * head_stride; });
  }
}

// The next block's rows, at `address` K's and behind them V's.
template <class Format>
inline void ask_for_block(const DecodeUnit& u, const DecodeKeys& of, int64_t keys, const char* const* address, NextBlock& next) {
  constexpr int64_t kSize = sizeof(typename Format::Storage);
  next.clear();
  add_rows(address, keys, of, u.k_stride, u.k_head, u.head_dim * kSize, next);
  add_rows(address + u.block_room, keys, of, u.v_stride, u.v_head, u.head_dim_v * kSize, next);
  next.start();
}

// One block of keys and one key head.
struct HeadBlock {
  const DecodeUnit* unit;
  int64_t head, begin, keys;
  const char *const *k, *const *v;
  NextBlock* next;  // what is asked for meanwhile
};

// What rows [first, first + kRows) see of a block, by lane.
template <class T, int kRows>
inline Seen<T> seen_keys(const HeadBlock& b, int64_t first) {
  constexpr int W = kLanes<T>, kKeys = W / kRows;
  const int64_t *row_begin = b.unit->row_begin + first, *row_end = b.unit->row_end + first;
  bool all = b.keys % kKeys == 0;
  for (int r = 0; r < kRows; ++r) all = all && row_begin[r] <= b.begin && row_end[r] >= b.begin + b.keys;
  if (all) return Seen<T>{VecN<Int<T>, W>{}, VecN<Int<T>, W>{}, true};
  Int<T> begin[W], end[W];
  for (int r = 0; r < kRows; ++r) {
    const int64_t from = row_begin[r] - b.begin, to = row_end[r] - b.begin;
    for (int n = 0; n < kKeys; ++n) {
      begin[r * kKeys + n] = static_cast<Int<T>>((from < 0 ? 0 : from > b.keys ? b.keys : from) - n);
      end[r * kKeys + n] = static_cast<Int<T>>((to < 0 ? 0 : to > b.keys ? b.keys : to) - n);
    }
  }
  return {load<VecN<Int<T>, W>>(begin), load<VecN<Int<T>, W>>(end), false};
}

template <class Format, int kRows>
__attribute__((noinline)) void attend_rows(const HeadBlock& b, int64_t first) {
  using T = typename Format::Accumulator;
  constexpr int W = kLanes<T>, kKeys = W / kRows;
  const DecodeUnit& u = *b.unit;
  const int64_t row = b.head * u.rows + first;
  T* s = static_cast<T*>(u.scores);
  T* running = static_cast<T*>(u.running) + row * 2 * W;
  const double natural = natural_scale(u.softmax_scale, u.softcap), cap = u.softcap;
  const double scale = u.softmax_scale < 0 ? -u.softmax_scale : u.softmax_scale;
  const int64_t keys = (b.keys + kKeys - 1) / kKeys * kKeys;

  dots<Format, kRows>(b.k, b.head * u.k_head, keys, u.head_dim, static_cast<const T*>(u.queries) + row * padded_dim<Format>(u.head_dim), s,
                      *b.next);
  const Vec<T> alpha = softmax<T, kRows>(s, keys, static_cast<T>(natural * kLog2E<double>), static_cast<T>(scale), static_cast<T>(cap),
                                         seen_keys<T, kRows>(b, first), running);
#if ATTILE_ISA_BF16_PAIRS
  for (int64_t i = 0; i < keys * kRows; i += W) store(s + i / 2, Format::round(load<Vec<T>>(s + i)));
#endif
  T* out = reinterpret_cast<T*>(u.part + u.layout.out) + row * u.layout.columns;
  values<Format, kRows>(b.v, b.head * u.v_head, b.keys, u.head_dim_v, s, alpha, out, u.layout.columns, *b.next);
}

template <class Format>
inline void attend_head(HeadBlock b) {
  using T = typename Format::Accumulator;
  const int64_t most = most_rows<T>(*b.unit);
  NextBlock nothing;
  for (int64_t first = 0, rows; first < b.unit->rows; first += rows) {
    rows = next_rows(b.unit->rows - first, most);
    switch (rows) {
      case 8:
        if constexpr (kMostRows<T> >= 8) attend_rows<Format, 8>(b, first);
        break;
      case 4:
        if constexpr (kMostRows<T> >= 4) attend_rows<Format, 4>(b, first);
        break;
      case 2:
        attend_rows<Format, 2>(b, first);
        break;
      default:
        attend_rows<Format, 1>(b, first);
    }
    b.next = &nothing;
  }
}

// Maximum and sum of every row out of its lanes.
template <class T>
inline void finish_rows(const DecodeUnit& u) {
  constexpr int W = kLanes<T>;
  T *max = reinterpret_cast<T*>(u.part + u.layout.max), *sum = reinterpret_cast<T*>(u.part + u.layout.sum);
  for (int64_t h = u.keys.head_begin; h < u.keys.head_end; ++h) {
    for (int64_t first = 0, rows; first < u.rows; first += rows) {
      rows = next_rows(u.rows - first, most_rows<T>(u));
      const int64_t row = h * u.rows + first, keys = W / rows;
      const T* running = static_cast<const T*>(u.running) + row * 2 * W;
      for (int64_t r = 0; r < rows; ++r) {
        max[row + r] = running[r * keys];
        T total{};
        for (int64_t n = 0; n < keys; ++n) total += running[W + r * keys + n];
        sum[row + r] = total;
      }
    }
  }
}

template <class T>
void attend(const DecodeUnit& u) {
  constexpr int W = kLanes<T>;
  with_decode_format<T>(u.dtype, [&](auto format) {
    using Format = decltype(format);
    pack_decode_queries<Format>(u);
    const int64_t rows_begin = u.keys.head_begin * u.rows, rows_end = u.keys.head_end * u.rows;
    T *out = reinterpret_cast<T*>(u.part + u.layout.out), *running = static_cast<T*>(u.running);
    for (int64_t i = rows_begin * u.layout.columns; i < rows_end * u.layout.columns; i += W) store(out + i, Vec<T>{});
    for (int64_t i = rows_begin; i < rows_end; ++i) {
      store(running + i * 2 * W, broadcast<T>(-kInfinity<T>));
      store(running + i * 2 * W + W, Vec<T>{});
    }
    const auto end_of_block = [&](const DecodeKeys& keys, int64_t begin) { return begin + u.block_k < keys.end ? begin + u.block_k : keys.end; };
    NextBlock next(static_cast<AheadRun*>(u.runs));
    const char** address[2] = {u.address, u.address + 2 * u.block_room};
    int64_t end = end_of_block(u.keys, u.keys.begin);
    find_rows(u, u.keys, u.keys.begin, end, address[0], address[0] + u.block_room);
    for (int64_t begin = u.keys.begin; begin < u.keys.end; begin = end) {
      end = end_of_block(u.keys, begin);
      const DecodeKeys& keys = end < u.keys.end ? u.keys : u.next;
      const int64_t ahead_begin = end < u.keys.end ? end : keys.begin, ahead_end = end_of_block(keys, ahead_begin);
      find_rows(u, keys, ahead_begin, ahead_end, address[1], address[1] + u.block_room);
      ask_for_block<Format>(u, keys, ahead_end - ahead_begin, address[1], next);
      HeadBlock b{&u, 0, begin, end - begin, address[0], address[0] + u.block_room, &next};
      for (b.head = u.keys.head_begin; b.head < u.keys.head_end; ++b.head) attend_head<Format>(b);
      const char** done = address[0];
      address[0] = address[1];
      address[1] = done;
    }
    finish_rows<T>(u);
  });
}

// Weights of the parts of one row, 2^((max - top) c), their sum of sums, and top.
template <class T>
struct JoinedRow {
  T top, sum;
};
template <class T>
inline JoinedRow<T> weigh_parts(const DecodeJoin& u, int64_t row, T c, T* weights) {
  constexpr int W = kLanes<T>;
  const auto value = [&](int64_t i, int64_t offset) {
    return load<T>(u.parts + i * u.layout.bytes + offset + row * static_cast<int64_t>(sizeof(T)));
  };
  T top = -kInfinity<T>, sum{};
  for (int64_t i = 0; i < u.count; ++i) {
    const T x = value(i, u.layout.max);
    top = x > top ? x : top;
  }
  const Vec<T> base = broadcast<T>(top == -kInfinity<T> ? T{} : top);
  for (int64_t i = 0; i < u.count; i += W) {
    Vec<T> x = broadcast<T>(-kInfinity<T>);
    for (int64_t n = 0; n < W && i + n < u.count; ++n) x[n] = value(i + n, u.layout.max);
    store(weights + i, exp2<T>((x - base) * c));
  }
  for (int64_t i = 0; i < u.count; ++i) sum += weights[i] * value(i, u.layout.sum);
  return {top, sum};
}

template <class T>
void join(const DecodeJoin& u) {
  constexpr int W = kLanes<T>;
  constexpr int64_t kMostParts = 1024, kMostColumns = 512;
  T weights[kMostParts + W];
  T out[kMostColumns + 2 * W];
  const double natural = natural_scale(u.softmax_scale, u.softcap);
  for (int64_t r = 0; r < u.row_count; ++r) {
    const QueryRow& row = u.rows[r];
    const JoinedRow<T> joined = weigh_parts<T>(u, u.first_row + r, static_cast<T>(natural * kLog2E<double>), weights);
    for (int64_t d = 0; d < u.layout.columns; d += W) {
      Vec<T> sum{};
      for (int64_t i = 0; i < u.count; ++i) {
        const char* part = u.parts + i * u.layout.bytes + u.layout.out;
        sum = fma(load<Vec<T>>(part + ((u.first_row + r) * u.layout.columns + d) * static_cast<int64_t>(sizeof(T))), broadcast<T>(weights[i]), sum);
      }
      store(out + d, sum);
    }
    // The sinks join in base 2.
    double top = static_cast<double>(joined.top) * natural * kLog2E<double>, total = static_cast<double>(joined.sum), factor = 1;
    if (row.sink_sum > 0) {
      const double higher = row.sink_max > top ? row.sink_max : top;
      factor = __builtin_exp2(top - higher);
      total = total * factor + row.sink_sum * __builtin_exp2(row.sink_max - higher);
      top = higher;
    }
    const Vec<T> scale = broadcast<T>(static_cast<T>(total == 0 ? 0 : factor / total));
    with_decode_format<T>(u.dtype, [&](auto format) {
      using Format = decltype(format);
      constexpr int64_t kSize = sizeof(typename Format::Storage);
      for (int64_t d = 0; d < u.head_dim_v; d += Format::kElements) {
        Vec<T> x[Format::kParts];
        for (int part = 0; part < Format::kParts; ++part) x[part] = load<Vec<T>>(out + d + part * W) * scale;
        Format::order(x);
        for (int part = 0; part < Format::kParts; ++part) {
          const int64_t at = d + part * W, columns = u.head_dim_v - at < W ? u.head_dim_v - at : W;
          if (columns == W) {
            Format::store_out(row.out + at * kSize, x[part]);
          } else if (columns > 0) {
            alignas(64) typename Format::Storage staged[W];
            Format::store_out(reinterpret_cast<char*>(staged), x[part]);
            __builtin_memcpy(row.out + at * kSize, staged, columns * kSize);
          }
        }
      }
    });
    if (row.lse) store(row.lse, static_cast<T>(top * kLn2<double> + __builtin_log(total)));
  }
}

extern const DecodeIsa kDecode;
#if ATTILE_ISA_BF16_PAIRS
const DecodeIsa kDecode = {kVectorBytes, {attend<float>, nullptr}, {join<float>, nullptr}};
#else
const DecodeIsa kDecode = {kVectorBytes, {attend<float>, attend<double>}, {join<float>, join<double>}};
#endif

}  // namespace attile::ATTILE_ISA
