// The product of both attention matmuls on tiles, C^T = A B^T with lanes as query rows:
//
//   scores  S^T[key][row]   = sum_d K[key][d]  Q^T[d][row]         A = K rows,  B = pairs of d of Q^T
//   values  O^T[dv][row]   += sum_j V^T[dv][j] P^T[j][row]         A = V^T rows, B = pairs of keys of P^T
//
// Both have one shape. A step multiplies 32 rows of A by 32 along the sum by 32 rows of queries: two tiles of A, two of B, four dots
// into the four tiles of C that stay in registers. Loads take half the time of the dots; each input register rests for two dots
// before it is loaded again.
//
// Numbers wider than bfloat16 are sums of parts, x = x0 + x1 (+ x2), each the rounded rest of those before: 16 or 24 bits. Products
// whose weight is below the last bit are left out: 3 of 4 with two parts, 6 of 9 with three.
//
//   a: [step][part][32][32]          bfloat16, 1 KB tiles of 16 rows
//   b: [step][part][2][16][16 rows][2]  bfloat16 pairs; its tiles too are 1 KB, for those that lie every other line come slowly from L2
//   c: [32][32 rows]                 float32
#pragma once

#include "cpu/amx/tiles.hpp"

namespace attile::ATTILE_ISA {

inline constexpr int kTileLanes = 32;                 // query rows of a step: two tiles side by side
inline constexpr int kStepBytes = 2 * kTileBytes;     // of one part of A or B
inline constexpr int kTileStep = 32;                  // elements of the sum that a step takes
inline constexpr int kLaneRowBytes = kTileLanes * 4;  // of C
inline constexpr int kTileRowFloats = kTileRowBytes / 4;

// Which parts of A and B meet, neighbours sharing one; small products first. kEvery: of two parts all four, exact for float16.
template <int kParts, bool kEvery>
struct PartProducts {
  static constexpr int kCount = 1, kA[kCount] = {0}, kB[kCount] = {0};
};
template <>
struct PartProducts<2, false> {
  static constexpr int kCount = 3, kA[kCount] = {1, 0, 0}, kB[kCount] = {0, 0, 1};
};
template <>
struct PartProducts<2, true> {
  static constexpr int kCount = 4, kA[kCount] = {1, 1, 0, 0}, kB[kCount] = {1, 0, 0, 1};
};
template <bool kEvery>
struct PartProducts<3, kEvery> {
  static constexpr int kCount = 6, kA[kCount] = {2, 1, 1, 0, 0, 0}, kB[kCount] = {0, 0, 1, 1, 0, 2};
};

// How often vector work is called for: after every step of four dots, or four times a step, each time behind loads that so have time to
// arrive. A core that retires in order holds some 500 instructions; dots that wait behind one another and behind their loads fill it.
enum class Pace { step, dot };

// Where A comes from: L1, or L2, whence it passes once, too much of it for L1, which then has room for B and C.
enum class Source { near, passing };

template <Source kSource, int kTile>
inline __attribute__((always_inline)) void load_a(const char* a) {
  kSource == Source::passing ? tile_load_passing<kTile>(a) : tile_load<kTile>(a);
}

// Registers: C 0 to 3 (two rows of A's tiles by two of B's), A 4 and 5, B 6 and 7.
template <int kParts, bool kEvery, int kRows, Source kSource = Source::near, int kProduct = 0, class Within>
inline __attribute__((always_inline)) void product_step(const char* a, const char* b, Within within) {
  using Products = PartProducts<kParts, kEvery>;
  constexpr int kA = Products::kA[kProduct], kB = Products::kB[kProduct], kBefore = kProduct > 0 ? kProduct - 1 : 0;
  constexpr bool kNewA = kProduct == 0 || kA != Products::kA[kBefore], kNewB = kProduct == 0 || kB != Products::kB[kBefore];
  const char *from_a = a + kA * kStepBytes, *from_b = b + kB * kStepBytes;
  if constexpr (kNewA) load_a<kSource, 4>(from_a);
  if constexpr (kNewB) tile_load<6>(from_b);
  within();
  tile_dot_bf16<0, 4, 6>();
  if constexpr (kNewB) tile_load<7>(from_b + kTileBytes);
  within();
  tile_dot_bf16<1, 4, 7>();
  if constexpr (kRows > 1) {
    if constexpr (kNewA) load_a<kSource, 5>(from_a + kTileBytes);
    within();
    tile_dot_bf16<2, 5, 6>();
    within();
    tile_dot_bf16<3, 5, 7>();
  }
  if constexpr (kProduct + 1 < Products::kCount) product_step<kParts, kEvery, kRows, kSource, kProduct + 1>(a, b, within);
}

// C's registers, kRows tiles of A by two of B: zeros, what lies at c, and back there.
template <int kRows>
inline __attribute__((always_inline)) void zero_product() {
  tile_zero<0>();
  tile_zero<1>();
  if constexpr (kRows > 1) {
    tile_zero<2>();
    tile_zero<3>();
  }
}

template <int kRows>
inline __attribute__((always_inline)) void load_product(const float* c) {
  tile_load<0>(c, kLaneRowBytes);
  tile_load<1>(c + kTileRowFloats, kLaneRowBytes);
  if constexpr (kRows > 1) {
    tile_load<2>(c + kTileRows * kTileLanes, kLaneRowBytes);
    tile_load<3>(c + kTileRows * kTileLanes + kTileRowFloats, kLaneRowBytes);
  }
}

template <int kRows>
inline __attribute__((always_inline)) void store_product(float* c) {
  tile_store<0>(c, kLaneRowBytes);
  tile_store<1>(c + kTileRowFloats, kLaneRowBytes);
  if constexpr (kRows > 1) {
    tile_store<2>(c + kTileRows * kTileLanes, kLaneRowBytes);
    tile_store<3>(c + kTileRows * kTileLanes + kTileRowFloats, kLaneRowBytes);
  }
}

// C's registers += A B over `steps`. `between` is called at that pace: vector work that the dots' time covers.
template <int kParts, bool kEvery, int kRows, Source kSource = Source::near, Pace kPace = Pace::step, class Between>
inline __attribute__((always_inline)) void continue_product(const char* a, const char* b, int64_t steps, Between between) {
  for (int64_t i = 0; i < steps; ++i) {
    if constexpr (kPace == Pace::dot) {
      product_step<kParts, kEvery, kRows, kSource>(a, b, between);
    } else {
      product_step<kParts, kEvery, kRows, kSource>(a, b, [] {});
    }
    a += kParts * kStepBytes;
    b += kParts * kStepBytes;
    if constexpr (kPace == Pace::step) between();
  }
}

// C (+)= A B.
template <int kParts, bool kEvery, int kRows, bool kAdd, class Between>
inline __attribute__((always_inline)) void tile_product(const char* a, const char* b, int64_t steps, float* c, Between between) {
  kAdd ? load_product<kRows>(c) : zero_product<kRows>();
  continue_product<kParts, kEvery, kRows>(a, b, steps, between);
  store_product<kRows>(c);
}

}  // namespace attile::ATTILE_ISA
