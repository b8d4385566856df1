// The softmax of MLA decoding on tiles: scores S^T [key][row] in float32 become P, tiles of 16 rows by 32 keys in bfloat16, in one
// pass while the maximum that P is relative to stands. It follows the scores only when they have outgrown it by 2^kLazy, which
// costs bfloat16 no digit and is rare; then everything is done again, with the softmax that all kernels share.
#pragma once

#include "cpu/amx/product.hpp"
#include "cpu/forward/softmax.hpp"

namespace attile::ATTILE_ISA {

// How far, in base 2, scores may be above the maximum that P is relative to.
inline constexpr float kLazy = 8;

// Pairs of keys of 16 rows to tile n of P, [32 keys][n][16 rows][32].
inline __attribute__((always_inline)) void store_probabilities(Vec<float> (&pairs)[16], int n, char* p) {
  transpose<float>(pairs);
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) store(p + n * kTileBytes + r * kTileRowBytes, pairs[r]);
}

// False, and neither sum nor s changed but for padding: scores have outgrown the maximum.
template <int N, class Between>
inline bool lazy_softmax(float* s, int64_t keys, float c, const float* max_of, float* sum_of, char* p, Between between) {
  Vec<float> top[N], base[N], sum[N];
  uint32_t outgrown = 0;
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n) {
    top[n] = broadcast<float>(-kInfinity<float>);
    base[n] = load<Vec<float>>(max_of + n * 16);
    outgrown |= lanes_of(base[n] == -kInfinity<float>);
    sum[n] = Vec<float>{};
  }
  if (outgrown || !(c >= 0x1p-126f)) return false;  // a subnormal times the -inf of what is not seen would be NaN
  for (int64_t i = keys * kTileLanes; i < round_up(keys, kTileStep) * kTileLanes; i += kLanes<float>)
    store(s + i, broadcast<float>(-kInfinity<float>));
  const Vec<float> factor = broadcast<float>(c);
  for (int64_t first = 0; first < keys; first += kTileStep, p += N * kTileBytes) {
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      const auto power = [&](int64_t j) __attribute__((always_inline)) {
        const Vec<float> score = load<Vec<float>>(s + (first + j) * kTileLanes + n * 16);
        top[n] = max(score, top[n]);
        const Vec<float> p_j = exp2<float>(fma(score, factor, Vec<float>{} - base[n]));
        sum[n] += p_j;
        return p_j;
      };
      Vec<float> pairs[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const Vec<float> even = power(2 * i);
        pairs[i] = make_pairs(even, power(2 * i + 1));
      }
      store_probabilities(pairs, n, p);
      between();
    }
  }
  if (any_steep<float, N>(top, c)) return false;
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n) outgrown |= lanes_of(top[n] * c > base[n] + kLazy);
  if (outgrown) return false;
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n) store(sum_of + n * 16, load<Vec<float>>(sum_of + n * 16) + sum[n]);
  return true;
}

// P^T [key][row] to P, zeros behind the last key.
template <int N>
inline void pack_probabilities(const float* s, int64_t keys, char* p) {
  const auto at = [&](int64_t j, int n) { return j < keys ? load<Vec<float>>(s + j * kTileLanes + n * 16) : Vec<float>{}; };
  for (int64_t first = 0; first < keys; first += kTileStep, p += N * kTileBytes) {
    for (int n = 0; n < N; ++n) {
      Vec<float> pairs[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) pairs[i] = make_pairs(at(first + 2 * i, n), at(first + 2 * i + 1, n));
      store_probabilities(pairs, n, p);
    }
  }
}

}  // namespace attile::ATTILE_ISA
