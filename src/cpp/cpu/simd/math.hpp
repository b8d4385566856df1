// exp2 and tanh of vectors.
//
//   2^x = 2^n (1 + r q(r)),  n = round(x),  |r| <= 1/2,  q minimax with relative error 1.1e-8 (float), 1.8e-17 (double)
//   tanh(x) = sign(x) * -e / (2 + e),  e = 2^(-2 |x| log2 e) - 1 taken without cancellation
//
// Adding 1.5 * 2^mantissa + bias to x rounds it to an integer and leaves the biased exponent in the low bits, so 2^n is one
// shift. Arguments are at most about 0 here: below -bias the power is an exact 0, above +bias it is not defined. NaN stays NaN.
// AVX-512 has r and the multiplication by 2^n as instructions, which float32 takes: 11 for a power instead of 14. What they leave below
// 2^-126 is flushed to 0 where subnormals are.
#pragma once

#include "cpu/simd/vector.hpp"

namespace attile::ATTILE_ISA {

template <class T>
struct Exp2;
template <>
struct Exp2<float> {
  static constexpr int kTerms = 6;
  static constexpr float kQ[kTerms] = {0.6931471879f, 0.2402264979f, 0.05550357434f, 0.009618237494f, 0.001339073548f, 0.0001540351262f};
};
template <>
struct Exp2<double> {
  static constexpr int kTerms = 11;
  static constexpr double kQ[kTerms] = {0.6931471805599453112,      0.24022650695910097889,   0.055504108664821236499,
                                        0.0096181291076070652998,   0.0013333558146531644707, 0.00015403530441481283746,
                                        0.000015252733701200713074, 1.3215442723878388157e-6, 1.0178121305806718011e-7,
                                        7.0725617683983011661e-9,   4.4455361318481760235e-10};
};

// q(r) of `Count` vectors, step by step, as everything here.
template <class T, int Count>
inline __attribute__((always_inline)) void polynomial(const Vec<T> (&r)[Count], Vec<T> (&q)[Count]) {
#pragma GCC unroll 8
  for (int k = 0; k < Count; ++k) q[k] = broadcast<T>(Exp2<T>::kQ[Exp2<T>::kTerms - 1]);
#pragma GCC unroll 16
  for (int i = Exp2<T>::kTerms - 2; i >= 0; --i) {
#pragma GCC unroll 8
    for (int k = 0; k < Count; ++k) q[k] = fma(q[k], r[k], broadcast<T>(Exp2<T>::kQ[i]));
  }
}

// power = 2^n and fraction = 2^r - 1 of `Count` vectors, step by step: a core that shares its scheduler with another thread holds too few
// instructions to overlap powers that follow each other.
template <class T, int Count>
struct Exp2Parts {
  Vec<T> power[Count], fraction[Count];
};

template <class T, int Count>
inline __attribute__((always_inline)) Exp2Parts<T, Count> exp2_parts(const Vec<T> (&of)[Count]) {
  using B = Bits<T>;
  const Vec<T> shifter = broadcast<T>(static_cast<T>(Int<T>{3} << (B::kMantissa - 1)) + B::kBias);
  Exp2Parts<T, Count> e;
  Vec<T> r[Count], shifted[Count], (&q)[Count] = e.fraction;
#pragma GCC unroll 8
  for (int k = 0; k < Count; ++k) r[k] = max(broadcast<T>(-B::kBias), of[k]);
#pragma GCC unroll 8
  for (int k = 0; k < Count; ++k) shifted[k] = r[k] + shifter;
#pragma GCC unroll 8
  for (int k = 0; k < Count; ++k) r[k] -= shifted[k] - shifter;
  polynomial<T, Count>(r, q);
#pragma GCC unroll 8
  for (int k = 0; k < Count; ++k) {
    e.power[k] = bit_cast<Vec<T>>(bit_cast<Vec<Int<T>>>(shifted[k]) << B::kMantissa);
    q[k] *= r[k];
  }
  return e;
}

// In place.
template <class T, int Count>
inline __attribute__((always_inline)) void exp2_each(Vec<T> (&x)[Count]) {
  if constexpr (kScalesByPowers && sizeof(T) == 4) {
    Vec<T> r[Count], q[Count];
#pragma GCC unroll 8
    for (int k = 0; k < Count; ++k) r[k] = nearest_fraction_of(x[k]);
#pragma GCC unroll 8
    for (int k = 0; k < Count; ++k) x[k] -= r[k];
    polynomial<T, Count>(r, q);
#pragma GCC unroll 8
    for (int k = 0; k < Count; ++k) q[k] = fma(q[k], r[k], broadcast<T>(1));
#pragma GCC unroll 8
    for (int k = 0; k < Count; ++k) x[k] = scale_by_power(q[k], x[k]);
  } else {
    const Exp2Parts<T, Count> e = exp2_parts<T, Count>(x);
#pragma GCC unroll 8
    for (int k = 0; k < Count; ++k) x[k] = fma(e.power[k], e.fraction[k], e.power[k]);
  }
}

template <class T>
inline Vec<T> exp2(Vec<T> x) {
  Vec<T> one[1] = {x};
  exp2_each<T, 1>(one);
  return one[0];
}

template <class T>
inline Vec<T> tanh(Vec<T> x) {
  using V = Vec<Int<T>>;
  const V sign = bit_cast<V>(x) & (V{} + (Int<T>{1} << (8 * sizeof(T) - 1)));
  const Vec<T> magnitude = bit_cast<Vec<T>>(bit_cast<V>(x) ^ sign);
  const Vec<T> exponent[1] = {magnitude * (-2 * kLog2E<T>)};
  const Exp2Parts<T, 1> e = exp2_parts<T, 1>(exponent);
  const Vec<T> below_one = fma(e.power[0], e.fraction[0], e.power[0] - static_cast<T>(1));
  const Vec<T> t = (Vec<T>{} - below_one) / (static_cast<T>(2) + below_one);
  return bit_cast<Vec<T>>(bit_cast<V>(t) | sign);
}

}  // namespace attile::ATTILE_ISA
