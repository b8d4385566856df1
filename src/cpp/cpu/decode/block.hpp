// One block of keys against kRows query rows of one key head, in three steps: dots, softmax, values.
//
// Lanes of a score vector are kRows rows by kKeys = lanes / kRows keys, row by row: so many dot products are summed in registers at
// once, and one tree of shuffles reduces them all: 45 instructions for 16 of them. K and V are used as they are loaded, from
// wherever they lie; during the work on one block the next one is asked for.
#pragma once

#include "cpu/decode/ahead.hpp"
#include "cpu/decode/formats.hpp"
#include "cpu/decode/unit.hpp"
#include "cpu/simd/math.hpp"
#include "cpu/simd/transpose.hpp"

namespace attile::ATTILE_ISA {

// Rows that a block may have: dot products and outs of a block stay in registers.
template <class T>
inline constexpr int kMostRows = kLanes<T> < (kVectorBytes == 64 ? 8 : 4) ? kLanes<T> : kVectorBytes == 64 ? 8 : 4;
// Of what is asked for ahead, K and V together.
inline constexpr int kStreams = 4;
// Vectors of out that are summed at a time.
inline constexpr int kSums = kVectorBytes == 64 ? 16 : 8;

// What the next block uses, asked for at the pace of what is loaded, in the order of memory: ascending addresses fill at the full
// rate, rows of one head alone, at a stride, at half of it.
using NextBlock = Ahead<kStreams>;

// Sums of the lanes of kLanes vectors: lane i is that of x[i].
template <class T, int Count>
inline __attribute__((always_inline)) Vec<T> sum_lanes(Vec<T> (&x)[Count]) {
  constexpr int W = kLanes<T>, Half = Count / 2;
  using All = typename MakeIndices<W>::type;
  if constexpr (Count == 1) {
    return x[0];
  } else {
    Vec<T> y[Half];
#pragma GCC unroll 16
    for (int i = 0; i < Half; ++i) y[i] = exchange<Half, false>(x[i], x[i + Half], All{}) + exchange<Half, true>(x[i], x[i + Half], All{});
    return sum_lanes<T>(y);
  }
}

// Applies op between the lanes of each group of Count lanes; all of them get the result.
template <class T, int Count, int... I>
inline Vec<T> swap_lanes(Vec<T> x, Indices<I...>) {
  return __builtin_shufflevector(x, x, (I ^ Count)...);
}
template <class T, int Count, class Op>
inline Vec<T> fold_lanes(Vec<T> x, Op op) {
  if constexpr (Count > 1) {
    x = op(x, swap_lanes<T, Count / 2>(x, typename MakeIndices<kLanes<T>>::type{}));
    return fold_lanes<T, Count / 2>(x, op);
  }
  return x;
}

// s = Q K^T. rows[j]: key j; q: [unit][part][row][lanes].
template <class Format, int kRows>
inline void dots(const char* const* rows, int64_t offset, int64_t keys, int64_t head_dim, const typename Format::Accumulator* q,
                 typename Format::Accumulator* s, NextBlock& ahead) {
  using T = typename Format::Accumulator;
  using Raw = typename Format::Raw;
  constexpr int W = kLanes<T>, kKeys = W / kRows, kQueryParts = Format::kPairs ? 1 : Format::kParts;
  constexpr int64_t kSize = sizeof(typename Format::Storage);
  const int64_t whole = head_dim / Format::kElements, rest = head_dim % Format::kElements;
  for (int64_t j = 0; j < keys; j += kKeys) {
    const char* key[kKeys];
    Vec<T> sum[W]{};
#pragma GCC unroll 16
    for (int n = 0; n < kKeys; ++n) {
      key[n] = rows[j + n] + offset;
    }
    const auto step = [&](const T* from, auto load_key) __attribute__((always_inline)) {
      ahead.template keep_pace<kKeys * sizeof(Raw)>();
      Raw raw[kKeys];
#pragma GCC unroll 16
      for (int n = 0; n < kKeys; ++n) raw[n] = load_key(key[n]);
#pragma GCC unroll 2
      for (int part = 0; part < kQueryParts; ++part) {
        Vec<T> x[kKeys];
#pragma GCC unroll 16
        for (int n = 0; n < kKeys; ++n) {
          if constexpr (Format::kPairs) x[n] = bit_cast<Vec<T>>(raw[n]);
          else x[n] = Format::part(raw[n], part);
        }
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const Vec<T> query = load<Vec<T>>(from + (part * kRows + r) * W);
#pragma GCC unroll 16
          for (int n = 0; n < kKeys; ++n) {
#if ATTILE_ISA_BF16_PAIRS
            sum[r * kKeys + n] = dot_pairs(x[n], query, sum[r * kKeys + n]);
#else
            sum[r * kKeys + n] = fma(x[n], query, sum[r * kKeys + n]);
#endif
          }
        }
      }
    };
    for (int64_t unit = 0; unit < whole; ++unit)
      step(q + unit * kQueryParts * kRows * W, [&](const char* p) { return load<Raw>(p + unit * sizeof(Raw)); });
    if (rest) step(q + whole * kQueryParts * kRows * W, [&](const char* p) { return load_bytes<Raw>(p + whole * sizeof(Raw), rest * kSize); });
    store(s + j * kRows, sum_lanes<T>(sum));
  }
}

// What the rows of a block see of a block of keys, relative to its first key.
template <class T>
struct Seen {
  VecN<Int<T>, kLanes<T>> begin, end;
  bool all;
};

// p = exp2(c (s - max)) in place; max and sum run on, alpha is what earlier outs are multiplied by.
template <class T, int kRows>
inline Vec<T> softmax(T* s, int64_t keys, T c, T scale, T cap, const Seen<T>& seen, T* running) {
  constexpr int W = kLanes<T>, kKeys = W / kRows;
  const int64_t count = keys * kRows;  // elements, whole vectors
  if (cap != 0) {
    const Vec<T> factor = broadcast<T>(scale / cap);
    for (int64_t i = 0; i < count; i += W) store(s + i, tanh<T>(load<Vec<T>>(s + i) * factor) * cap);
  }
  if (!seen.all) {
    for (int64_t i = 0; i < count; i += W) {
      const VecN<Int<T>, W> key = VecN<Int<T>, W>{} + static_cast<Int<T>>(i / kRows);
      const Vec<T> nothing = broadcast<T>(-kInfinity<T>);
      store(s + i, (key >= seen.begin) & (key < seen.end) ? load<Vec<T>>(s + i) : nothing);
    }
  }
  const Vec<T> before = load<Vec<T>>(running);
  Vec<T> top = before, sum{};
  for (int64_t i = 0; i < count; i += W) top = max(load<Vec<T>>(s + i), top);
  top = fold_lanes<T, kKeys>(top, [](Vec<T> a, Vec<T> b) { return max(a, b); });
  const Vec<T> base = top == -kInfinity<T> ? Vec<T>{} : top;
  const Vec<T> alpha = exp2<T>((before - base) * c);
#pragma GCC unroll 2
  for (int64_t i = 0; i < count; i += W) {
    const Vec<T> p = exp2<T>((load<Vec<T>>(s + i) - base) * c);
    sum += p;
    store(s + i, p);
  }
  store(running, top);
  store(running + W, fma(load<Vec<T>>(running + W), alpha, sum));
  return alpha;
}

// out = alpha out + P V, for kUnits units of columns. Not inlined: then the compiler keeps all sums in registers.
template <class Format, int kRows, int kUnits>
__attribute__((noinline)) void values_of_units(const char* const* rows, int64_t offset, int64_t keys, int64_t columns, const typename Format::Accumulator* p,
                            const typename Format::Accumulator* alpha, typename Format::Accumulator* out, int64_t row, NextBlock& ahead) {
  using T = typename Format::Accumulator;
  using Raw = typename Format::Raw;
  constexpr int W = kLanes<T>, kKeys = W / kRows, kVectors = kUnits * Format::kParts;
  constexpr int64_t kSize = sizeof(typename Format::Storage);
  Vec<T> sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) sum[r][i] = load<Vec<T>>(out + r * row + i * W) * alpha[r * kKeys];
  }
  const auto run = [&](auto load_key) __attribute__((always_inline)) {
#if ATTILE_ISA_BF16_PAIRS
    const auto two = [&](int64_t j, auto load_second) __attribute__((always_inline)) {
      ahead.template keep_pace<2 * kUnits * sizeof(Raw)>();
      const float* pair = p + (j / kKeys * W + j % kKeys) / 2;
      Vec<T> x[kVectors];
#pragma GCC unroll 16
      for (int unit = 0; unit < kUnits; ++unit) {
        const Raw a = load_key(rows[j] + offset + unit * sizeof(Raw)), b = load_second(rows[j + 1] + offset + unit * sizeof(Raw));
        x[2 * unit] = Format::value_pairs(a, b, 0);
        x[2 * unit + 1] = Format::value_pairs(a, b, 1);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vec<T> weight = broadcast<T>(pair[r * kKeys / 2]);
#pragma GCC unroll 16
        for (int i = 0; i < kVectors; ++i) sum[r][i] = dot_pairs(x[i], weight, sum[r][i]);
      }
    };
    int64_t j = 0;
    for (; j + 2 <= keys; j += 2) two(j, load_key);
    if (j < keys) two(j, [](const char*) { return Raw{}; });  // its weight is 0, which an infinite value would make NaN
#else
    const auto one = [&](int64_t j, const T* at) __attribute__((always_inline)) {
      const char* key = rows[j] + offset;
      ahead.template keep_pace<kUnits * sizeof(Raw)>();
      Vec<T> x[kVectors];
#pragma GCC unroll 16
      for (int unit = 0; unit < kUnits; ++unit) {
        const Raw raw = load_key(key + unit * sizeof(Raw));
#pragma GCC unroll 2
        for (int part = 0; part < Format::kParts; ++part) x[unit * Format::kParts + part] = Format::part(raw, part);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vec<T> weight = broadcast<T>(at[r * kKeys]);
#pragma GCC unroll 16
        for (int i = 0; i < kVectors; ++i) sum[r][i] = fma(x[i], weight, sum[r][i]);
      }
    };
    int64_t j = 0;
    for (; j + kKeys <= keys; j += kKeys) {
#pragma GCC unroll 4
      for (int n = 0; n < kKeys; ++n) one(j + n, p + j * kRows + n);
    }
    for (int n = 0; j + n < keys; ++n) one(j + n, p + j * kRows + n);
#endif
  };
  if (columns >= kUnits * Format::kElements) run([](const char* at) { return load<Raw>(at); });
  else if constexpr (kUnits == 1) run([columns](const char* at) { return load_bytes<Raw>(at, columns * kSize); });
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kVectors; ++i) store(out + r * row + i * W, sum[r][i]);
  }
}

// `row`: elements between the rows of out.
template <class Format, int kRows>
inline void values(const char* const* rows, int64_t offset, int64_t keys, int64_t head_dim_v, const typename Format::Accumulator* p,
                   Vec<typename Format::Accumulator> factors, typename Format::Accumulator* out, int64_t row, NextBlock& ahead) {
  using T = typename Format::Accumulator;
  constexpr int kColumns = kSums / kRows < 8 ? kSums / kRows : 8;
  constexpr int kUnits = kColumns > Format::kParts ? kColumns / Format::kParts : 1;
  constexpr int64_t kWide = kUnits * Format::kElements, kUnitBytes = sizeof(typename Format::Raw);
  T alpha[kLanes<T>];
  store(alpha, factors);
  int64_t d = 0;
  for (; d + kWide <= head_dim_v; d += kWide) {
    values_of_units<Format, kRows, kUnits>(rows, offset + d / Format::kElements * kUnitBytes, keys, kWide, p, alpha,
                                           out + d / Format::kElements * Format::kParts * kLanes<T>, row, ahead);
  }
  for (; d < head_dim_v; d += Format::kElements) {
    const int64_t columns = head_dim_v - d < Format::kElements ? head_dim_v - d : Format::kElements;
    values_of_units<Format, kRows, 1>(rows, offset + d / Format::kElements * kUnitBytes, keys, columns, p, alpha,
                                      out + d / Format::kElements * Format::kParts * kLanes<T>, row, ahead);
  }
}

}  // namespace attile::ATTILE_ISA
