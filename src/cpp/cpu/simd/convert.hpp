// Between memory types and lanes: one vector of accumulators from as many elements of float64, float32, float16 or bfloat16 at
// any address, and back, rounding to nearest even with NaN kept. Masks: nonzero bytes, shorts, words, longs to 0, zero to -inf.
#pragma once

#include "cpu/simd/vector.hpp"

namespace attile::ATTILE_ISA {

// Element formats; kF16 and kBf16 are told apart by type.
struct F64 {
  using Storage = double;
};
struct F32 {
  using Storage = float;
};
struct F16 {
  using Storage = uint16_t;
};
struct Bf16 {
  using Storage = uint16_t;
};

template <int W>
inline VecN<float, W> bf16_to_f32(VecN<uint16_t, W> h) {
  return bit_cast<VecN<float, W>>(__builtin_convertvector(h, VecN<uint32_t, W>) << 16);
}
template <int W>
inline VecN<uint16_t, W> f32_to_bf16(VecN<float, W> x) {
  using U = VecN<uint32_t, W>;
  const U u = bit_cast<U>(x);
  const U rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  const U quiet = (u >> 16) | 0x40u;
  return __builtin_convertvector((u & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded, VecN<uint16_t, W>);
}

template <class T, class Format>
inline Vec<T> load_as(const void* p) {
  constexpr int W = kLanes<T>;
  const auto raw = load<VecN<typename Format::Storage, W>>(p);
  if constexpr (__is_same(Format, F16)) {
    return __builtin_convertvector(f16_to_f32(raw), Vec<T>);
  } else if constexpr (__is_same(Format, Bf16)) {
    return __builtin_convertvector(bf16_to_f32<W>(raw), Vec<T>);
  } else {
    return __builtin_convertvector(raw, Vec<T>);
  }
}

template <class T, class Format>
inline void store_as(void* p, Vec<T> x) {
  constexpr int W = kLanes<T>;
  if constexpr (__is_same(Format, F16)) {
    store(p, f32_to_f16(__builtin_convertvector(x, VecN<float, W>)));
  } else if constexpr (__is_same(Format, Bf16)) {
    store(p, f32_to_bf16<W>(__builtin_convertvector(x, VecN<float, W>)));
  } else {
    store(p, __builtin_convertvector(x, VecN<typename Format::Storage, W>));
  }
}

// 0 where the element is not zero, else -inf.
template <class T, class Element>
inline Vec<T> load_mask(const void* p) {
  constexpr int W = kLanes<T>;
  using Signed = VecN<Element, W>;
  const Signed seen = load<Signed>(p) != Signed{};
  return __builtin_convertvector(seen, Vec<Int<T>>) != 0 ? Vec<T>{} : broadcast<T>(-kInfinity<T>);
}

// Rounds a score to float16 or bfloat16 and back. A double is rounded once, by its own bits: going through float32 would round
// twice.
template <class Format>
inline Vec<float> round_to(Vec<float> x) {
  if constexpr (__is_same(Format, F16)) {
    return f16_to_f32(f32_to_f16(x));
  } else {
    return bf16_to_f32<kLanes<float>>(f32_to_bf16<kLanes<float>>(x));
  }
}
template <class Format>
inline Vec<double> round_to(Vec<double> x) {
  constexpr bool kHalf = __is_same(Format, F16);
  constexpr int kDropped = kHalf ? 42 : 45;
  constexpr double kLargest = kHalf ? 65504.0 : 0x1.FEp127;
  constexpr double kSmallestNormal = kHalf ? 0x1p-14 : 0x1p-126, kQuantum = kHalf ? 0x1p-24 : 0x1p-133;
  using I = Vec<int64_t>;
  const I sign_bit = I{} + INT64_MIN;
  const I u = bit_cast<I>(x) & ~sign_bit, sign = bit_cast<I>(x) & sign_bit;
  const I rounded = (u + ((int64_t{1} << (kDropped - 1)) - 1) + ((u >> kDropped) & 1)) & -(int64_t{1} << kDropped);
  const Vec<double> magnitude = bit_cast<Vec<double>>(u);
  const Vec<double> shifter = broadcast<double>(kQuantum * 0x1.8p52);
  Vec<double> y = magnitude < kSmallestNormal ? (magnitude + shifter) - shifter : bit_cast<Vec<double>>(rounded);
  y = y > kLargest ? broadcast<double>(kInfinity<double>) : y;
  y = magnitude != magnitude ? magnitude : y;
  return bit_cast<Vec<double>>(bit_cast<I>(y) | sign);
}

}  // namespace attile::ATTILE_ISA
