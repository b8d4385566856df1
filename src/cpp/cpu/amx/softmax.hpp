// Online softmax of a group of keys by 32 rows, in pieces small enough to run beside the dots of tiles: vector instructions and
// tile instructions leave one stream, and the core overlaps them.
//
//   p_j = 2^(c s_j - base),   base an integer, at least the row's maximum so far less kSlack
//
// A power of two as base keeps every rescaling exact, and c s - base = n + r takes one rounding: n by adding to 1.5 * 2^23, r by a
// second fma. base follows the maximum only when that has grown by more than 2^kSlack: p is at most 2^kSlack then, as precise as
// ever, and O is nearly never rescaled. A group is done with the base at hand; when its maximum turns out too large, base is
// raised and the group done again.
//
// The polynomial of 2^r has the degree that out wants: 3 (relative error 7.5e-5) where p is rounded to bfloat16, 4 (2.6e-6) for
// float16, 6 terms as elsewhere for float32 and wherever lse is asked for, which sums unrounded p.
#pragma once

#include "cpu/amx/pack.hpp"
#include "cpu/simd/math.hpp"

namespace attile::ATTILE_ISA {

inline constexpr int kGroup = kTileGroup, kStepPairs = kTileStep / 2;
inline constexpr int kAccurate = 6;  // degree
inline constexpr float kSlack = 8;
// Beyond this in base 2 the pieces of the exponent lose digits, and cpu/forward/softmax.hpp takes over.
inline constexpr float kLargestBase = 0x1p20f;

// 2^r, |r| <= 1/2.
template <int kDegree>
inline __attribute__((always_inline)) Vec<float> power_of_fraction(Vec<float> r) {
  const auto of = [](float x) { return broadcast<float>(x); };
  if constexpr (kDegree == 3) {
    const Vec<float> high = fma(of(0.05517141776f), r, of(0.2426111704f));
    return fma(fma(high, r, of(0.6932610559f)), r, of(0.9999280729f));
  } else if constexpr (kDegree == 4) {
    const Vec<float> high = fma(fma(of(0.00956773844f), r, of(0.05591749824f)), r, of(0.2402481071f));
    return fma(fma(high, r, of(0.6931219384f)), r, of(0.9999992500f));
  } else {
    constexpr int kTerms = Exp2<float>::kTerms;
    Vec<float> q = of(Exp2<float>::kQ[kTerms - 1]);
#pragma GCC unroll 8
    for (int i = kTerms - 2; i >= 0; --i) q = fma(q, r, of(Exp2<float>::kQ[i]));
    return fma(q, r, of(1));
  }
}

// Two keys' p as bfloat16, the nearer, of two equally near the larger: four instructions, a conversion and a permutation take a cycle
// more. A NaN may come out as anything; it is in the sum.
inline __attribute__((always_inline)) Vec<float> round_pair(Vec<float> even, Vec<float> odd) {
  using Words = VecN<uint32_t, 16>;
  constexpr uint32_t kHalf = 0x8000, kOddHalves = 0xAAAAAAAA;
  const Words low = (bit_cast<Words>(even) + kHalf) >> 16, high = bit_cast<Words>(odd) + kHalf;
  return (Vec<float>)_mm512_mask_blend_epi16(kOddHalves, (__m512i)low, (__m512i)high);
}

// Two keys' p, rounded to parts in turn.
template <int kParts>
inline __attribute__((always_inline)) void store_pair(Vec<float> even, Vec<float> odd, char* to) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    const Vec<float> pair = round_pair(even, odd);
    store(to + i * kStepBytes, pair);
    if (i + 1 < kParts) {
      const VecN<uint32_t, 16> bits = bit_cast<VecN<uint32_t, 16>>(pair);
      even -= bit_cast<Vec<float>>(bits << 16);
      odd -= bit_cast<Vec<float>>(bits & 0xFFFF0000u);
    }
  }
}

// s: [keys][32 rows] float32 -> p: [step][part][16][32 rows][2], keys a multiple of 32
template <int kParts, int kDegree>
class GroupSoftmax {
 public:
  Vec<float> sum[2], top[2];  // of the keys done

  inline __attribute__((always_inline)) GroupSoftmax()
      : sum{}, top{}, shift_{}, lowest_{}, factor_{}, s_(nullptr), p_(nullptr), pairs_(0) {}

  inline __attribute__((always_inline)) void begin(const float* s, char* p, int64_t keys, const Vec<float> (&base)[2], float c) {
    constexpr float kExponent = 0x1.8p23f + 127;
    s_ = s;
    p_ = p;
    pairs_ = keys / 2;
    factor_ = broadcast<float>(c);
    const Vec<float> inverse = broadcast<float>(1 / c);
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      const Vec<float> b = base[n] == -kInfinity<float> ? Vec<float>{} : base[n];
      shift_[n] = kExponent - b;
      lowest_[n] = (b - 127.f) * inverse;  // 2^-127 is an exact zero
      sum[n] = Vec<float>{};
      top[n] = broadcast<float>(-kInfinity<float>);
    }
  }

  // The next pairs of keys, at most `count`.
  inline __attribute__((always_inline)) void advance(int64_t count) {
    for (; count > 0 && pairs_ > 0; --count, --pairs_) {
#pragma GCC unroll 2
      for (int n = 0; n < 2; ++n) {
        const Vec<float> even = load<Vec<float>>(s_ + n * 16), odd = load<Vec<float>>(s_ + kTileLanes + n * 16);
        top[n] = max(even, top[n]);
        top[n] = max(odd, top[n]);
        const Vec<float> p_even = power(even, n), p_odd = power(odd, n);
        sum[n] += p_even;
        sum[n] += p_odd;
        store_pair<kParts>(p_even, p_odd, p_ + n * kTileRowBytes);
      }
      s_ += 2 * kTileLanes;
      p_ += kLaneRowBytes;
      if (kParts > 1 && pairs_ % kStepPairs == 1) p_ += (kParts - 1) * kStepBytes;
    }
  }
  inline __attribute__((always_inline)) void finish() { advance(pairs_); }

  // In place, and nothing but p and sum.
  inline __attribute__((always_inline)) void in_place(float* s, int64_t keys) {
    for (int64_t j = 0; j < keys; ++j) {
#pragma GCC unroll 2
      for (int n = 0; n < 2; ++n) {
        const Vec<float> p = power(load<Vec<float>>(s + n * 16), n);
        sum[n] += p;
        store(s + n * 16, p);
      }
      s += kTileLanes;
    }
  }

 private:
  Vec<float> shift_[2], lowest_[2], factor_;
  const float* s_;
  char* p_;
  int64_t pairs_;

  inline __attribute__((always_inline)) Vec<float> power(Vec<float> s, int n) const {
    s = max(lowest_[n], s);
    const Vec<float> shifted = fma(s, factor_, shift_[n]);
    const Vec<float> r = fma(s, factor_, shift_[n] - shifted);
    return bit_cast<Vec<float>>(bit_cast<Vec<int32_t>>(shifted) << 23) * power_of_fraction<kDegree>(r);
  }
};

// The largest score of every row of a group.
inline void group_top(const float* s, int64_t keys, Vec<float> (&top)[2]) {
#pragma GCC unroll 2
  for (int n = 0; n < 2; ++n) top[n] = broadcast<float>(-kInfinity<float>);
#pragma GCC unroll 4
  for (int64_t j = 0; j < keys; ++j) {
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) top[n] = max(load<Vec<float>>(s + j * kTileLanes + n * 16), top[n]);
  }
}

// p of `steps` times 32 keys times alpha of its row.
template <int kParts>
inline __attribute__((noinline)) void scale_probabilities(char* p, int64_t steps, const Vec<float> (&alpha)[2]) {
  for (int64_t i = 0; i < steps * kParts * kStepPairs; ++i) {
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      char* at = p + i * kLaneRowBytes + n * kTileRowBytes;
      const auto bits = load<VecN<uint32_t, 16>>(at);
      store(at, make_pairs(bit_cast<Vec<float>>(bits << 16) * alpha[n], bit_cast<Vec<float>>(bits & 0xFFFF0000u) * alpha[n]));
    }
  }
}

// [rows][32 lanes] times alpha of the lane.
inline __attribute__((noinline)) void scale_lanes(float* x, int64_t rows, const Vec<float> (&alpha)[2]) {
  for (int64_t i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) store(x + i * kTileLanes + n * 16, load<Vec<float>>(x + i * kTileLanes + n * 16) * alpha[n]);
  }
}

}  // namespace attile::ATTILE_ISA
