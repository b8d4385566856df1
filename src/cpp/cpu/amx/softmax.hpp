// Online softmax of a group of keys by 32 rows, in pieces small enough to run beside the dots of tiles: vector instructions and
// tile instructions leave one stream, and the core overlaps them.
//
//   p_j = 2^(c s_j - base),   base an integer, at least the row's maximum so far less kSlack
//
// A power of two as base keeps every rescaling exact. base does not follow the maximum until a group's p sum to more than 2^kSlack in some
// row: p is at most that then, as precise as ever, and O is nearly never rescaled. A group is done with the base at hand; when p turns out
// too large, base is raised to the maximum and the group done again.
//
// x = c s - base is one fma; vreduce takes x - floor(x), vscalef multiplies by 2^floor(x), and does at once what else would be a
// clamp, a shift and a multiplication: -inf gives 0, and so does what lies below 2^-126 where subnormals are flushed. The polynomial
// of 2^r, 0 <= r < 1, has the degree that out wants: 3 (relative error 7.5e-5) where p is rounded to bfloat16, 4 (2.7e-6) for
// float16. The accurate form, 6 terms as elsewhere on |r| <= 1/2, is float32's and everybody's where lse is asked for, which sums
// unrounded p. Quick: 9 instructions of the vector units for 16 scores, two of them a cycle.
#pragma once

#include "cpu/amx/pack.hpp"
#include "cpu/simd/math.hpp"

namespace attile::ATTILE_ISA {

inline constexpr int kStepPairs = kTileStep / 2;
inline constexpr int kAccurate = 6;  // degree
inline constexpr float kSlack = 8;
// Beyond this in base 2 the exponent loses digits, and cpu/forward/softmax.hpp takes over.
inline constexpr float kLargestBase = 0x1p20f;

inline Vec<float> fraction_of(Vec<float> x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }

// 2^x, kAtOnce of them step by step: a core whose scheduler is shared does not overlap chains that follow one another.
template <int kDegree, int kAtOnce>
inline __attribute__((always_inline)) void powers_of_two(Vec<float> (&x)[kAtOnce]) {
  const auto of = [](float c) { return broadcast<float>(c); };
  static constexpr float kCubic[] = {0.9999252186f, 0.6958335405f, 0.2260671554f, 0.07802452266f};
  static constexpr float kQuartic[] = {1.000002593f, 0.6930038345f, 0.2414427569f, 0.05201146062f, 0.01353416791f};
  constexpr bool kIsAccurate = kDegree == kAccurate;
  constexpr const float* c = kIsAccurate ? Exp2<float>::kQ : kDegree == 3 ? kCubic : kQuartic;
  constexpr int kLast = kIsAccurate ? Exp2<float>::kTerms - 1 : kDegree;
  Vec<float> r[kAtOnce], q[kAtOnce];
#pragma GCC unroll 4
  for (int n = 0; n < kAtOnce; ++n) r[n] = kIsAccurate ? nearest_fraction_of(x[n]) : fraction_of(x[n]);
#pragma GCC unroll 4
  for (int n = 0; n < kAtOnce; ++n) q[n] = fma(of(c[kLast]), r[n], of(c[kLast - 1]));
#pragma GCC unroll 8
  for (int i = kLast - 2; i >= 0; --i) {
#pragma GCC unroll 4
    for (int n = 0; n < kAtOnce; ++n) q[n] = fma(q[n], r[n], of(c[i]));
  }
#pragma GCC unroll 4
  for (int n = 0; n < kAtOnce; ++n) x[n] = kIsAccurate ? scale_by_power(fma(q[n], r[n], of(1)), x[n] - r[n]) : scale_by_power(q[n], x[n]);
}

// Two keys' p as bfloat16, the nearer, of two equally near the larger: four instructions, a conversion and a permutation take a cycle
// more. A NaN may come out as anything; it is in the sum.
using Words = VecN<uint32_t, 16>;
inline __attribute__((always_inline)) Vec<float> round_pair(Vec<float> even, Vec<float> odd) {
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
    const Words bits = bit_cast<Words>(pair);
    store(to + i * kStepBytes, pair);
    if (i + 1 < kParts) {
      even -= bit_cast<Vec<float>>(bits << 16);
      odd -= bit_cast<Vec<float>>(bits & 0xFFFF0000u);
    }
  }
}

// s: [keys][32 rows] float32 -> p: [step][part][2][16][16 rows][2], keys a multiple of 32
template <int kParts, int kDegree>
class GroupSoftmax {
 public:
  static constexpr bool kQuick = kDegree != kAccurate;
  Vec<float> sum[2], top[2];  // of the keys done; top, the largest scores, in the accurate form alone

  inline __attribute__((always_inline)) GroupSoftmax() : sum{}, top{}, shift_{}, factor_{}, s_(nullptr), p_(nullptr), pairs_(0) {}

  inline __attribute__((always_inline)) void begin(const float* s, char* p, int64_t keys, const Vec<float> (&base)[2], float c) {
    s_ = s;
    p_ = p;
    pairs_ = keys / 2;
    factor_ = broadcast<float>(c);
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      shift_[n] = base[n] == -kInfinity<float> ? Vec<float>{} : Vec<float>{} - base[n];
      sum[n] = Vec<float>{};
      top[n] = broadcast<float>(-kInfinity<float>);
    }
  }

  // The next pair of keys, if there is one.
  inline __attribute__((always_inline)) void advance() {
    if (pairs_ <= 0) return;
    Vec<float> p[4];  // of the even key's rows, then of the odd one's
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vec<float> s = load<Vec<float>>(s_ + i * 16);
      if constexpr (!kQuick) top[i % 2] = max(s, top[i % 2]);
      p[i] = fma(s, factor_, shift_[i % 2]);
    }
    powers_of_two<kDegree, 4>(p);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sum[i % 2] += p[i];
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) store_pair<kParts>(p[n], p[n + 2], p_ + n * kTileBytes);
    s_ += 2 * kTileLanes;
    p_ += pairs_ % kStepPairs == 1 ? kParts * kStepBytes - (kStepPairs - 1) * kTileRowBytes : kTileRowBytes;
    --pairs_;
  }

  // The next pairs of keys, at most `count`.
  inline __attribute__((always_inline)) void advance(int64_t count) {
    for (; count > 0 && pairs_ > 0; --count) advance();
  }
  inline __attribute__((always_inline)) void finish() { advance(pairs_); }

  // Whether some p may be above 2^kSlack, or is no number; +inf is.
  inline __attribute__((always_inline)) bool outgrown() const {
    if constexpr (kQuick) {
      const Vec<float> most = broadcast<float>(1 << static_cast<int>(kSlack));
      return lanes_of((sum[0] <= most) & (sum[1] <= most)) != 0xFFFF;
    } else {
      return lanes_of((fma(top[0], factor_, shift_[0]) > kSlack) | (fma(top[1], factor_, shift_[1]) > kSlack)) != 0;
    }
  }

  // In place, and nothing but p and sum.
  inline __attribute__((always_inline)) void in_place(float* s, int64_t keys) {
    for (int64_t j = 0; j < keys; ++j) {
      Vec<float> p[2];
#pragma GCC unroll 2
      for (int n = 0; n < 2; ++n) p[n] = fma(load<Vec<float>>(s + n * 16), factor_, shift_[n]);
      powers_of_two<kDegree, 2>(p);
#pragma GCC unroll 2
      for (int n = 0; n < 2; ++n) {
        sum[n] += p[n];
        store(s + n * 16, p[n]);
      }
      s += kTileLanes;
    }
  }

 private:
  Vec<float> shift_[2], factor_;
  const float* s_;
  char* p_;
  int64_t pairs_;
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
      char* at = p + i / kStepPairs * kStepBytes + n * kTileBytes + i % kStepPairs * kTileRowBytes;
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
