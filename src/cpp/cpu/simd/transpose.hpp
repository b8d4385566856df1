// Transposes a square of kLanes vectors in registers: log2(kLanes) rounds, each swapping blocks of half the size, as in a
// recursive transpose from the outside in.
#pragma once

#include "cpu/simd/vector.hpp"

namespace attile::ATTILE_ISA {

template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};

// Lane i of the result of (a, b): blocks of `Block` lanes, taken in turn from a and b; the lower or the upper of each pair.
template <int W, int Block, bool Upper>
constexpr int exchanged_lane(int i) {
  const int within = i % Block, pair = i / (2 * Block);
  const bool from_b = (i / Block) % 2 == 1;
  return pair * 2 * Block + (Upper ? Block : 0) + within + (from_b ? W : 0);
}

template <int Block, bool Upper, class V, int... I>
inline V exchange(V a, V b, Indices<I...>) {
  return __builtin_shufflevector(a, b, exchanged_lane<sizeof...(I), Block, Upper>(I)...);
}

template <class T, int Block>
inline void transpose_rounds(Vec<T> (&x)[kLanes<T>]) {
  constexpr int W = kLanes<T>;
  using All = typename MakeIndices<W>::type;
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    if ((i / Block) % 2 == 0) {
      const Vec<T> a = x[i], b = x[i + Block];
      x[i] = exchange<Block, false>(a, b, All{});
      x[i + Block] = exchange<Block, true>(a, b, All{});
    }
  }
  if constexpr (Block > 1) transpose_rounds<T, Block / 2>(x);
}

// A square whose row l begins at row_at(l), transposed. Halves of vectors are loaded where the first round would move them to, so that it
// needs no shuffle.
template <class T, class RowAt>
inline __attribute__((always_inline)) void load_transposed(RowAt row_at, Vec<T> (&x)[kLanes<T>]) {
  constexpr int W = kLanes<T>, kHalf = W / 2;
  using Half = VecN<T, kHalf>;
#pragma GCC unroll 8
  for (int l = 0; l < kHalf; ++l) {
    const char *low = row_at(l), *high = row_at(l + kHalf);
    x[l] = join_halves(load<Half>(low), load<Half>(high));
    x[l + kHalf] = join_halves(load<Half>(low + sizeof(Half)), load<Half>(high + sizeof(Half)));
  }
  if constexpr (kHalf > 1) transpose_rounds<T, kHalf / 2>(x);
}

template <class T>
inline void transpose(Vec<T> (&x)[kLanes<T>]) {
  transpose_rounds<T, kLanes<T> / 2>(x);
}

}  // namespace attile::ATTILE_ISA
