// The two products of MLA decoding on tiles:
//
//   S^T[key][row]  = K Q^T     A = rows of the cache as they lie, B = pairs of dims of Q^T, packed once a unit
//   O[row][column] += P V      A = P, transposed from the softmax's P^T, B = pairs of keys of V
//
// so that the cache is never transposed: a pair of its rows is interleaved within 128 bits, two shuffles for 64 elements, and the columns
// that this permutes are put in order when O is written. A step is four dots: with 32 rows two tiles of A by two of B, with 16 rows
// four tiles of the longer side by one.
#pragma once

#include "cpu/amx/tiles.hpp"

namespace attile::ATTILE_ISA {

// Four A tiles by one B tile of 1 KB: C 0 to 3, A 4, 5, 6, B 7.
template <class Between>
inline __attribute__((always_inline)) void dots_4x1(const char* const (&a)[4], const int64_t (&stride)[4], const char* b, Between between) {
  tile_load<7>(b);
  tile_load<4>(a[0], stride[0]);
  tile_dot_bf16<0, 4, 7>();
  tile_load<5>(a[1], stride[1]);
  tile_dot_bf16<1, 5, 7>();
  between();
  tile_load<6>(a[2], stride[2]);
  tile_dot_bf16<2, 6, 7>();
  tile_load<4>(a[3], stride[3]);
  tile_dot_bf16<3, 4, 7>();
  between();
}

// One A tile by two B tiles, one after another: C 0 and 1, A 7, B 4 and 5.
template <class Between>
inline __attribute__((always_inline)) void dots_1x2(const char* a, const char* b, Between between) {
  tile_load<7>(a);
  tile_load<4>(b);
  tile_dot_bf16<0, 7, 4>();
  tile_load<5>(b + kTileBytes);
  tile_dot_bf16<1, 7, 5>();
  between();
}

// One A tile by four B tiles of 1 KB, one after another: C 0 to 3, A 7, B 4, 5, 6.
template <class Between>
inline __attribute__((always_inline)) void dots_1x4(const char* a, const char* b, Between between) {
  dots_1x2(a, b, between);
  tile_load<6>(b + 2 * kTileBytes);
  tile_dot_bf16<2, 7, 6>();
  tile_load<4>(b + 3 * kTileBytes);
  tile_dot_bf16<3, 7, 4>();
  between();
}

// Two by two: C 0 to 3 in the order (a0 b0) (a0 b1) (a1 b0) (a1 b1), A 4 and 5, B 6 and 7. kLeft, kRight: which of B's tiles are not all zero.
template <bool kLeft, bool kRight, class Between>
inline __attribute__((always_inline)) void dots_2x2(const char* a0, int64_t a0_stride, const char* a1, int64_t a1_stride, const char* b0,
                                                    const char* b1, int64_t b_stride, Between between) {
  tile_load<4>(a0, a0_stride);
  if constexpr (kLeft) {
    tile_load<6>(b0, b_stride);
    tile_dot_bf16<0, 4, 6>();
  }
  if constexpr (kRight) {
    tile_load<7>(b1, b_stride);
    tile_dot_bf16<1, 4, 7>();
  }
  between();
  tile_load<5>(a1, a1_stride);
  if constexpr (kLeft) tile_dot_bf16<2, 5, 6>();
  if constexpr (kRight) tile_dot_bf16<3, 5, 7>();
  between();
}

inline __attribute__((always_inline)) void zero_accumulators() {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
}

// Columns of keys 2 i and 2 i + 1 of V, 16 for each tile, to row i of B tiles.
template <int kTiles>
inline __attribute__((always_inline)) void interleave_rows(const char* even, const char* odd, char* to) {
#pragma GCC unroll 2
  for (int pair = 0; pair < kTiles / 2; ++pair) {
    const __m512i x = _mm512_loadu_si512(even + pair * kTileRowBytes), y = _mm512_loadu_si512(odd + pair * kTileRowBytes);
    _mm512_store_si512(to + 2 * pair * kTileBytes, _mm512_unpacklo_epi16(x, y));
    _mm512_store_si512(to + (2 * pair + 1) * kTileBytes, _mm512_unpackhi_epi16(x, y));
  }
}

}  // namespace attile::ATTILE_ISA
