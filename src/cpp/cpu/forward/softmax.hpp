// Online softmax of a tile, vertical: a lane is a row, so maximum and sum need no horizontal step and a NaN stays in its lane.
//
//   max' = max(max, c s_j);  alpha = 2^(max - max');  p_j = 2^(c s_j - max');  sum' = alpha sum + sum_j p_j
//
// c takes scores to base 2. Where nothing has been seen yet max' is -inf, and 0 is subtracted instead, so that p is 0. The
// comparisons drop NaN from the maximum; it comes back through p and so reaches sum and out of that row alone.
// c s_j - max' is one fma, whose result differs from 0 at the maximum itself by the rounding of max': harmless, for all p of the row
// share it, until scores are so large that out without normalisation, and later the range of exp2, would show it.
// Dropout multiplies p after the sum: rows and keys give the counters of core/philox.hpp, two keys a call.
#pragma once

#include "cpu/forward/product.hpp"
#include "cpu/simd/math.hpp"

namespace attile::ATTILE_ISA {

// Maxima above this, in base 2, round by more than a hundredth or so.
template <class T>
inline constexpr T kSteep = static_cast<T>(int64_t{1} << (Bits<T>::kMantissa - 7));

template <class T, int N>
inline bool any_steep(const Vec<T> (&top)[N], T c) {
  const Vec<T> limit = broadcast<T>(kSteep<T> / c), nothing = broadcast<T>(-kInfinity<T>);
  VecN<Int<T>, kLanes<T>> steep{};
  for (int n = 0; n < N; ++n) steep |= (top[n] > limit) | ((top[n] < Vec<T>{} - limit) & (top[n] > nothing));
  uint64_t words[kVectorBytes / 8], any = 0;
  store(words, steep);
  for (const uint64_t word : words) any |= word;
  return any != 0;
}

// Takes steep scores relative to their maximum, exactly. Returns that maximum in base 2, where one beyond the range of T (a bias
// of the smallest float) saturates, so that it stays seen.
template <class T>
inline __attribute__((noinline)) Vec<T> flatten(T* s, int64_t keys, T c, Vec<T> top) {
  constexpr T kLargest = static_cast<T>(sizeof(T) == 4 ? 0x1.fffffep127 : 0x1.fffffffffffffp1023);
  const Vec<T> infinite = broadcast<T>(kInfinity<T>), largest = broadcast<T>(kLargest);
  const Vec<T> origin = top == Vec<T>{} - infinite ? Vec<T>{} : top;
  for (int64_t j = 0; j < keys; ++j) store(s + j * kPanel<T>, load<Vec<T>>(s + j * kPanel<T>) - origin);
  const Vec<T> scaled = max(Vec<T>{} - largest, origin * c);
  return origin == infinite ? infinite : scaled > largest ? largest : scaled;
}

// Keys at a time: independent chains of maxima and of powers, in 32 registers or in 16.
inline constexpr int kKeysAtOnce = kVectorBytes == 64 ? 3 : 1;

// The largest of each lane.
template <class T, int N>
inline __attribute__((always_inline)) void lane_maxima(const T* s, int64_t keys, Vec<T> (&top)[N]) {
  constexpr int kVectors = kKeysAtOnce * N;
  const auto vector = [&](int64_t j, int i) { return load<Vec<T>>(s + (j + i / N) * kPanel<T> + i % N * kLanes<T>); };
  Vec<T> tops[kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) tops[i] = broadcast<T>(-kInfinity<T>);
  int64_t j = 0;
  for (; j + kKeysAtOnce <= keys; j += kKeysAtOnce) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) tops[i] = max(vector(j, i), tops[i]);
  }
  for (; j < keys; ++j) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) tops[n] = max(vector(j, n), tops[n]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) top[i % N] = i < N ? tops[i] : max(tops[i], top[i % N]);
}

// p = exp2(factor s - base) of kKeys keys, in place and added to sum.
template <class T, int kKeys, int N>
inline __attribute__((always_inline)) void powers(T* s, Vec<T> factor, const Vec<T> (&base)[N], Vec<T> (&sum)[N]) {
  const auto at = [&](int i) { return s + i / N * kPanel<T> + i % N * kLanes<T>; };
  Vec<T> p[kKeys * N];
#pragma GCC unroll 8
  for (int i = 0; i < kKeys * N; ++i) p[i] = fma(load<Vec<T>>(at(i)), factor, Vec<T>{} - base[i % N]);
  exp2_each<T>(p);
#pragma GCC unroll 8
  for (int i = 0; i < kKeys * N; ++i) {
    sum[i % N] += p[i];
    store(at(i), p[i]);
  }
}

// max, sum: [kPanel]
template <class T, int N>
inline void softmax(T* s, int64_t keys, T c, T* max_of, T* sum_of, Vec<T> (&alpha)[N]) {
  constexpr int W = kLanes<T>;
  const Vec<T> factor = broadcast<T>(c);
  Vec<T> top[N], base[N], sum[N] = {};
  lane_maxima<T, N>(s, keys, top);
  const bool steep = any_steep<T, N>(top, c);
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
    const Vec<T> before = load<Vec<T>>(max_of + n * W);
    Vec<T> scaled = top[n] * factor, origin{};
    if (steep) {
      origin = flatten<T>(s + n * W, keys, c, top[n]);
      scaled = top[n] == -kInfinity<T> ? top[n] : origin;
    }
    const Vec<T> now = max(scaled, before);
    base[n] = now == -kInfinity<T> ? Vec<T>{} : now;
    alpha[n] = exp2<T>(before - base[n]);
    store(max_of + n * W, now);
    base[n] -= origin;
  }
  int64_t j = 0;
  for (; j + kKeysAtOnce <= keys; j += kKeysAtOnce) powers<T, kKeysAtOnce, N>(s + j * kPanel<T>, factor, base, sum);
  for (; j < keys; ++j) powers<T, 1, N>(s + j * kPanel<T>, factor, base, sum);
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) store(sum_of + n * W, fma(load<Vec<T>>(sum_of + n * W), alpha[n], sum[n]));
}

// p of keys 2 j and 2 j + 1 rounded to bfloat16 and joined, in place: [pair][kPanel]. The partner of a last odd key is zero.
template <class T, int N>
inline void pair_probabilities(T* p, int64_t keys) {
  constexpr int W = kLanes<T>;
  for (int64_t j = 0; j < keys; j += 2) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const T* from = p + j * kPanel<T> + n * W;
      const Vec<T> low = load<Vec<T>>(from), high = j + 1 < keys ? load<Vec<T>>(from + kPanel<T>) : Vec<T>{};
      store(p + j / 2 * kPanel<T> + n * W, make_pairs(low, high));
    }
  }
}

// The four words of Philox4x32-10 for `kRows` rows and one pair of keys.
template <int kRows>
inline void philox(uint32_t pair, const uint32_t* query, const uint32_t* head, uint32_t sequence, uint64_t seed,
                   uint32_t (&word)[4][kRows]) {
  for (int l = 0; l < kRows; ++l) {
    word[0][l] = pair;
    word[1][l] = query[l];
    word[2][l] = head[l];
    word[3][l] = sequence;
  }
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int l = 0; l < kRows; ++l) {
      const uint64_t a = uint64_t{0xD2511F53u} * word[0][l], b = uint64_t{0xCD9E8D57u} * word[2][l];
      const uint32_t w1 = word[1][l], w3 = word[3][l];
      word[0][l] = static_cast<uint32_t>(b >> 32) ^ w1 ^ key0;
      word[1][l] = static_cast<uint32_t>(b);
      word[2][l] = static_cast<uint32_t>(a >> 32) ^ w3 ^ key1;
      word[3][l] = static_cast<uint32_t>(a);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// p of keys [key, key + keys) scaled by 1 / (1 - probability) where kept, else zero.
template <class T, int N>
inline void apply_dropout(const Unit& u, const QueryRow* rows, int64_t key, int64_t keys, T* p) {
  constexpr int kRows = N * kLanes<T>;
  uint32_t query[kRows], head[kRows], odd_half[kRows], word[4][kRows];
  for (int l = 0; l < kRows; ++l) {
    query[l] = rows[l].philox_query;
    head[l] = rows[l].philox_head;
    odd_half[l] = rows[l].philox_word;
  }
  const T scale = static_cast<T>(u.dropout_scale);
  for (int64_t pair = key >> 1; 2 * pair < key + keys; ++pair) {
    philox<kRows>(static_cast<uint32_t>(pair), query, head, u.dropout_sequence, u.dropout_seed, word);
    for (int side = 0; side < 2; ++side) {
      const int64_t j = 2 * pair + side - key;
      if (j < 0 || j >= keys) continue;
      T* at = p + j * kPanel<T>;
      for (int l = 0; l < kRows; ++l) {
        const uint32_t bits = odd_half[l] ? word[2 + side][l] : word[side][l];
        at[l] *= bits >= u.dropout_threshold ? scale : T{0};
      }
    }
  }
}

}  // namespace attile::ATTILE_ISA
