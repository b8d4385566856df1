// What happens to scores between the product and the softmax, in the order of the specification, each a pass over the tile of
// one panel while it lies in L1 (s is [key][row of panel]):
//
//   s = softmax_scale * s + bias;  s = softcap * tanh(s / softcap);  s rounded to logits_dtype;  s = -inf where not seen
//
// Masks select, they never add: a NaN at an unseen position is gone. bias and attention_mask are read along the keys, a square
// of rows and keys at a time, and transposed in registers. Only what a unit asks for is run.
#pragma once

#include "cpu/forward/pack.hpp"
#include "cpu/simd/math.hpp"

namespace attile::ATTILE_ISA {

// Whether scores are finished in natural units before the softmax; if not, softmax_scale is left to the softmax, where it meets -inf:
// what is flushed to 0 there would make a NaN of it.
inline bool scores_are_natural(const Unit& u) {
  constexpr double kLeastScale = 0x1p-100;
  return u.bias_dtype != DType::none || u.softcap != 0 || u.logits_dtype != DType::none || !(u.softmax_scale > kLeastScale);
}

// Applies f to every vector of the tile.
template <class T, int N, class F>
inline __attribute__((always_inline)) void for_each_score(T* s, int64_t keys, F f) {
  for (int64_t j = 0; j < keys; ++j) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      T* at = s + j * kPanel<T> + n * kLanes<T>;
      store(at, f(load<Vec<T>>(at)));
    }
  }
}

// Two keys of a bfloat16 bias are a word: one square of words, transposed, serves twice as many scores, and a line of the bias is read
// once; its rows often lie a power of two apart, in few sets of L1. Returns how many keys are done. take: of a key, a vector of bias.
template <class T, class RowAt, class Take>
inline __attribute__((always_inline)) int64_t take_bias_words(RowAt row_at, int64_t keys, Take take) {
  constexpr int W = kLanes<T>;
  using Words = VecN<Int<T>, W>;
  int64_t first = 0;
  for (; first + 2 * W <= keys; first += 2 * W) {
    Vec<T> pairs[W];
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l) pairs[l] = load<Vec<T>>(row_at(l) + first * 2);
    transpose<T>(pairs);
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) {
      const Words bits = bit_cast<Words>(pairs[w]);
      take(first + 2 * w, bit_cast<Vec<T>>(bits << 16));
      take(first + 2 * w + 1, bit_cast<Vec<T>>(bits & static_cast<Int<T>>(0xFFFF0000u)));
    }
  }
  return first;
}

// s = softmax_scale * s + bias. Without a softcap a bias of -inf means unseen, whatever the product was.
template <class T, int N>
inline __attribute__((noinline)) void add_bias(const Unit& u, const QueryRow* rows, int64_t key, int64_t keys, T* s) {
  const Vec<T> scale = broadcast<T>(static_cast<T>(u.softmax_scale));
  const Vec<T> lowest = broadcast<T>(-kInfinity<T>);
  const Vec<T> unseen = u.softcap == 0 ? lowest : lowest - lowest;  // a NaN equals nothing
  with_format(u.bias_dtype, [&](auto format) {
    using Format = decltype(format);
    using Storage = typename Format::Storage;
    for (int n = 0; n < N; ++n) {
      const auto row_at = [&](int l) { return rows[n * kLanes<T> + l].bias + key * u.bias_stride; };
      const auto take = [&](int64_t j, Vec<T> bias) {
        T* at = s + j * kPanel<T> + n * kLanes<T>;
        const Vec<T> sum = fma(load<Vec<T>>(at), scale, bias);
        store(at, bias == unseen ? lowest : sum);
      };
      int64_t done = 0;
      if constexpr (__is_same(Format, Bf16) && sizeof(T) == 4) {
        if (u.bias_stride == static_cast<int64_t>(sizeof(Storage))) done = take_bias_words<T>(row_at, keys, take);
      }
      for_each_transposed<T, Storage>([&](int l) { return row_at(l) + done * u.bias_stride; }, u.bias_stride, keys - done,
                                      [](const void* p) { return load_as<T, Format>(p); },
                                      [&](int64_t j, Vec<T> bias) { take(done + j, bias); });
    }
  });
}

// s = -inf where attention_mask is zero.
template <class T, int N>
inline __attribute__((noinline)) void apply_attention_mask(const Unit& u, const QueryRow* rows, int64_t key, int64_t keys, T* s) {
  const auto apply = [&](auto element) {
    using Element = decltype(element);
    for (int n = 0; n < N; ++n) {
      for_each_transposed<T, Element>([&](int l) { return rows[n * kLanes<T> + l].mask + key * u.mask_stride; }, u.mask_stride, keys,
                                      [](const void* p) { return load_mask<T, Element>(p); },
                                      [&](int64_t j, Vec<T> addend) {
                                        T* at = s + j * kPanel<T> + n * kLanes<T>;
                                        store(at, addend == Vec<T>{} ? load<Vec<T>>(at) : addend);
                                      });
    }
  };
  switch (u.mask_bytes) {
    case 1:
      return apply(int8_t{});
    case 2:
      return apply(int16_t{});
    case 4:
      return apply(int32_t{});
    default:
      return apply(int64_t{});
  }
}

// s = -inf where the ids of query and key differ or are negative. ids: [keys], negative ones replaced by kNoKey.
inline constexpr int64_t kNoKey = -1, kNoQuery = -2;

template <class T, int N>
inline __attribute__((noinline)) void apply_segments(const QueryRow* rows, const int64_t* ids, int64_t keys, T* s) {
  int64_t row_ids[kPanel<T>];
  for (int l = 0; l < N * kLanes<T>; ++l) row_ids[l] = rows[l].segment < 0 ? kNoQuery : rows[l].segment;
  for (int64_t j = 0; j < keys; ++j) {
    T* at = s + j * kPanel<T>;
    for (int l = 0; l < N * kLanes<T>; ++l) at[l] = row_ids[l] == ids[j] ? at[l] : -kInfinity<T>;
  }
}

// s = -inf outside [key_begin, key_end) of the row. Positions are relative to the tile, so they are exact in T.
template <class T, int N>
inline __attribute__((noinline)) void apply_positions(const QueryRow* rows, int64_t key, int64_t keys, T* s) {
  T begin[kPanel<T>], end[kPanel<T>];
  for (int l = 0; l < N * kLanes<T>; ++l) {
    const int64_t b = rows[l].key_begin - key, e = rows[l].key_end - key;
    begin[l] = static_cast<T>(b < 0 ? 0 : b > keys ? keys : b);
    end[l] = static_cast<T>(e < 0 ? 0 : e > keys ? keys : e);
  }
  for (int n = 0; n < N; ++n) {
    const Vec<T> first = load<Vec<T>>(begin + n * kLanes<T>), last = load<Vec<T>>(end + n * kLanes<T>);
    for (int64_t j = 0; j < keys; ++j) {
      T* at = s + j * kPanel<T> + n * kLanes<T>;
      const Vec<T> position = broadcast<T>(static_cast<T>(j));
      const Vec<T> unseen = broadcast<T>(-kInfinity<T>);
      store(at, ((position >= first) & (position < last)) ? load<Vec<T>>(at) : unseen);
    }
  }
}

// Keys [key, key + keys) of the rows of a panel; `full`: positions need no test.
template <class T, int N>
inline void adjust_scores(const Unit& u, const QueryRow* rows, int64_t key, int64_t keys, int64_t in_tile, bool full, T* s) {
  if (u.bias_dtype != DType::none) {
    add_bias<T, N>(u, rows, key, keys, s);
  } else if (scores_are_natural(u)) {
    const Vec<T> scale = broadcast<T>(static_cast<T>(u.softmax_scale));
    for_each_score<T, N>(s, keys, [&](Vec<T> x) { return x * scale; });
  }
  if (u.softcap != 0) {
    const Vec<T> cap = broadcast<T>(static_cast<T>(u.softcap)), inverse = broadcast<T>(static_cast<T>(1 / u.softcap));
    for_each_score<T, N>(s, keys, [&](Vec<T> x) { return cap * tanh<T>(x * inverse); });
  }
  if (u.logits_dtype == DType::f16) for_each_score<T, N>(s, keys, [](Vec<T> x) { return round_to<F16>(x); });
  if (u.logits_dtype == DType::bf16) for_each_score<T, N>(s, keys, [](Vec<T> x) { return round_to<Bf16>(x); });
  if (u.mask_bytes != 0) apply_attention_mask<T, N>(u, rows, key, keys, s);
  if (u.key_ids != nullptr) apply_segments<T, N>(rows, u.scratch.ids + in_tile, keys, s);
  if (!full) apply_positions<T, N>(rows, key, keys, s);
}

}  // namespace attile::ATTILE_ISA
