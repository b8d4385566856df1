// A bfloat16 bias as one more product of tiles, so that scores need no pass for it:
//
//   S^T[key][row] = sum_d K[key][d] Q^T[d][row]  +  sum_k (I / softmax_scale)[key][k]  bias^T[k][row]
//
// B's tile of 32 keys by 16 rows of bias is a square of words, two keys each, transposed: 64 permutations for 512 scores, made beside the
// products of values, which have no softmax beside them. 1 / softmax_scale is one part of bfloat16 where it is a power of two and three
// otherwise, as exact as a sum in float32.
//
// Limits: zeros of I make a NaN of an infinity, and quotients may overflow, so groups with a bias of 2^100 or beyond, -inf among them,
// take the pass of cpu/forward/scores.hpp and the careful form of the softmax. Every group takes that pass where the bias is of another
// type, or a softcap or a rounding of scores follows it.
#pragma once

#include "cpu/amx/visit.hpp"
#include "cpu/forward/scores.hpp"

namespace attile::ATTILE_ISA {

// Keys of 16 rows, at most 32, as a tile of B; zeros beyond. False: some are too large.
template <class RowAt>
inline __attribute__((always_inline)) bool make_bias_tile(RowAt row_at, int64_t keys, char* to) {
  constexpr short kMagnitude = 0x7FFF, kLimit = 0x7180;  // 2^100
  const __mmask32 here = keys < kTileStep ? static_cast<__mmask32>((uint64_t{1} << keys) - 1) : ~__mmask32{0};
  Vec<float> words[kTileRows];
  __m512i largest = _mm512_setzero_si512();
#pragma GCC unroll 16
  for (int l = 0; l < kTileRows; ++l) {
    const __m512i row = _mm512_maskz_loadu_epi16(here, row_at(l));
    largest = _mm512_max_epu16(largest, _mm512_and_si512(row, _mm512_set1_epi16(kMagnitude)));
    words[l] = (Vec<float>)row;
  }
  transpose<float>(words);
#pragma GCC unroll 16
  for (int w = 0; w < kTileRows; ++w) store(to + w * kTileRowBytes, words[w]);
  return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(kLimit)) == 0;
}

// The tiles of a visit, [step][2 times 16 rows], and a mark for each of its groups that does not go through them; marks of the visit
// after it lie beside them.
class BiasTiles {
 public:
  explicit BiasTiles(const Unit& u)
      : used_(taken(u)), tiles_(static_cast<char*>(u.scratch.bias)), marks_(tiles_ + u.block_k / kTileStep * kStepBytes) {
    if (!used_) return;
    float rest = static_cast<float>(1 / u.softmax_scale);
    for (parts_ = 0; parts_ < kMostParts && rest != 0; ++parts_) {
      const uint16_t part = rounded(rest);
      rest -= __builtin_bit_cast(float, uint32_t{part} << 16);
      for (int key = 0; key < kTileStep; ++key)
        for (int k = 0; k < kTileStep; ++k) quotient_[parts_][key][k] = key == k ? part : uint16_t{0};
    }
  }

  bool used() const { return used_; }
  bool holds(const Visit& visit, int64_t g) const { return used_ && !mark(visit, g); }

  // C's registers += the bias of step `step` of a visit.
  inline __attribute__((always_inline)) void add(int64_t step) const {
    for (int i = 0; i < parts_; ++i)
      product_step<1, false, 2>(reinterpret_cast<const char*>(quotient_[i]), tiles_ + step * kStepBytes, [] {});
  }

  // What is to be made: a visit's tiles but for those of its first group, then those of the first group of the visit after it, whose scores
  // come before the values of that visit. Either may be null.
  void queue(const Visit* visit, const Visit* next) {
    visit_ = used_ ? visit : nullptr;
    next_ = used_ ? next : nullptr;
    tile_ = visit_ ? tiles_of_first(*visit_) : 0;
    end_ = visit_ ? 2 * visit_->steps : 0;
  }
  int64_t left() const { return end_ - tile_ + (next_ ? tiles_of_first(*next_) : 0); }

  // The next tiles, at most `count`.
  __attribute__((noinline)) void make(int64_t count) {
    for (; count > 0; --count) {
      if (tile_ == end_) {
        if (!next_) return;
        visit_ = next_;
        next_ = nullptr;
        tile_ = 0;
        end_ = tiles_of_first(*visit_);
      }
      const int64_t step = tile_ / 2, side = tile_ % 2, at = (visit_->key + step * kTileStep) * kElement;
      char& group_mark = mark(*visit_, step / kGroupSteps);
      if (tile_ % (2 * kGroupSteps) == 0) group_mark = 0;
      const QueryRow* rows = visit_->rows + side * kTileRows;
      const bool fits = make_bias_tile([rows, at](int l) { return rows[l].bias + at; }, visit_->keys - step * kTileStep,
                                       tiles_ + step * kStepBytes + side * kTileBytes);
      if (!fits) group_mark = 1;
      ++tile_;
    }
  }

 private:
  static constexpr int kMostParts = 3;
  static constexpr int64_t kElement = 2;
  const bool used_;
  char *const tiles_, *const marks_;
  int parts_ = 0;
  const Visit *visit_ = nullptr, *next_ = nullptr;
  int64_t tile_ = 0, end_ = 0;
  alignas(64) uint16_t quotient_[kMostParts][kTileStep][kTileStep];

  static bool taken(const Unit& u) {
    constexpr double kLeast = 0x1p-20, kMost = 0x1p20;
    return u.dtype == DType::bf16 && u.bias_dtype == DType::bf16 && u.bias_stride == kElement && u.softcap == 0 &&
           u.logits_dtype == DType::none && u.softmax_scale >= kLeast && u.softmax_scale <= kMost;
  }
  static uint16_t rounded(float x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }
  static int64_t tiles_of_first(const Visit& visit) { return 2 * (visit.steps < kGroupSteps ? visit.steps : kGroupSteps); }
  char& mark(const Visit& visit, int64_t g) const { return marks_[2 * g + visit.turn]; }
};

}  // namespace attile::ATTILE_ISA
