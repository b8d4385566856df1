// How elements lie in registers while decoding. A unit is one load: as many elements as fill a vector, or two of bfloat16, which widen
// by a shift (even elements) and a mask (odd elements); the order of columns is restored once, when out is written.
#pragma once

#include "core/dtype.hpp"
#include "cpu/simd/convert.hpp"
#include "cpu/simd/transpose.hpp"

namespace attile::ATTILE_ISA {

// The first `bytes` of a vector; the rest is zero and not read.
template <class V>
inline V load_bytes(const char* p, int64_t bytes) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  if constexpr (sizeof(V) == 64) return (V)_mm512_maskz_loadu_epi8(~uint64_t{0} >> (64 - bytes), p);
  if constexpr (sizeof(V) == 32) return (V)_mm256_maskz_loadu_epi8(~uint32_t{0} >> (32 - bytes), p);
#endif
  V v{};
  __builtin_memcpy(&v, p, bytes);
  return v;
}

// Elements that widen to one vector each load: float64, float32, float16.
template <class T, class Stored>
struct PlainFormat {
  using Accumulator = T;
  using Storage = typename Stored::Storage;
  using Raw = VecN<Storage, kLanes<T>>;
  static constexpr int kParts = 1, kElements = kLanes<T>;
  static constexpr bool kPairs = false;

  static Vec<T> part(Raw raw, int) {
    if constexpr (__is_same(Stored, F16)) return f16_to_f32(raw);
    else return raw;
  }
  static void order(Vec<T> (&)[kParts]) {}
  static void store_out(char* p, Vec<T> x) { store_as<T, Stored>(p, x); }
};

template <int... I>
inline Vec<float> interleave(Vec<float> even, Vec<float> odd, int first, Indices<I...>) {
  constexpr int W = kLanes<float>;
  return first == 0 ? __builtin_shufflevector(even, odd, (I / 2 + I % 2 * W)...)
                    : __builtin_shufflevector(even, odd, (W / 2 + I / 2 + I % 2 * W)...);
}

// bfloat16, widened: part 0 the even elements, part 1 the odd ones.
struct Bf16Format {
  using Accumulator = float;
  using Storage = uint16_t;
  using Raw = Vec<uint32_t>;
  static constexpr int kParts = 2, kElements = 2 * kLanes<float>;
  static constexpr bool kPairs = false;

  static Vec<float> part(Raw raw, int i) { return bit_cast<Vec<float>>(i == 0 ? raw << 16 : raw & 0xFFFF0000u); }
  static void order(Vec<float> (&x)[kParts]) {
    using All = typename MakeIndices<kLanes<float>>::type;
    const Vec<float> even = x[0], odd = x[1];
    x[0] = interleave(even, odd, 0, All{});
    x[1] = interleave(even, odd, 1, All{});
  }
  static void store_out(char* p, Vec<float> x) { store_as<float, Bf16>(p, x); }
};

#if ATTILE_ISA_BF16_PAIRS
// bfloat16 as pairs for dot products. Values of two keys are interleaved in each 128 bits: part 0 has the lower four of eight columns,
// part 1 the upper four.
struct Bf16PairFormat : Bf16Format {
  static constexpr bool kPairs = true;

  static Vec<float> value_pairs(Raw a, Raw b, int i) {
    return i == 0 ? (Vec<float>)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b) : (Vec<float>)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b);
  }
  static VecN<uint32_t, 8> round(Vec<float> p) { return (VecN<uint32_t, 8>)_mm512_cvtneps_pbh(p); }
  static void order(Vec<float> (&x)[kParts]) {
    const Vec<float> low = x[0], high = x[1];
    x[0] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    x[1] = __builtin_shufflevector(low, high, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  }
};
#endif

// Calls f with the format of a dtype whose accumulator is T.
template <class T, class F>
inline void with_decode_format(DType dtype, F&& f) {
#if ATTILE_ISA_BF16_PAIRS
  (void)dtype;
  f(Bf16PairFormat{});
#else
  if constexpr (sizeof(T) == 8) {
    f(PlainFormat<double, F64>{});
  } else if (dtype == DType::f32) {
    f(PlainFormat<float, F32>{});
  } else if (dtype == DType::f16) {
    f(PlainFormat<float, F16>{});
  } else {
    f(Bf16Format{});
  }
#endif
}

// `count` elements, zeros behind them.
template <class Format>
inline typename Format::Raw load_unit(const char* p, int64_t count) {
  if (count >= Format::kElements) return load<typename Format::Raw>(p);
  return load_bytes<typename Format::Raw>(p, count * static_cast<int64_t>(sizeof(typename Format::Storage)));
}

}  // namespace attile::ATTILE_ISA
