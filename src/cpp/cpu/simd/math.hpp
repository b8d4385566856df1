// exp2 and tanh of vectors.
//
//   2^x = 2^n (1 + r q(r)),  n = round(x),  |r| <= 1/2,  q minimax with relative error 1.1e-8 (float), 1.8e-17 (double)
//   tanh(x) = sign(x) * -e / (2 + e),  e = 2^(-2 |x| log2 e) - 1 taken without cancellation
//
// Adding 1.5 * 2^mantissa + bias to x rounds it to an integer and leaves the biased exponent in the low bits, so 2^n is one
// shift. Arguments are at most about 0 here: below -bias the power is an exact 0, above +bias it is not defined. NaN stays NaN.
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

// power = 2^n and fraction = 2^r - 1.
template <class T>
struct Exp2Parts {
  Vec<T> power, fraction;
};

template <class T>
inline Exp2Parts<T> exp2_parts(Vec<T> x) {
  using B = Bits<T>;
  const Vec<T> shifter = broadcast<T>(static_cast<T>(Int<T>{3} << (B::kMantissa - 1)) + B::kBias);
  x = max(broadcast<T>(-B::kBias), x);
  const Vec<T> shifted = x + shifter;
  const Vec<T> r = x - (shifted - shifter);
  const Vec<T> power = bit_cast<Vec<T>>(bit_cast<Vec<Int<T>>>(shifted) << B::kMantissa);
  Vec<T> q = broadcast<T>(Exp2<T>::kQ[Exp2<T>::kTerms - 1]);
#pragma GCC unroll 16
  for (int i = Exp2<T>::kTerms - 2; i >= 0; --i) q = fma(q, r, broadcast<T>(Exp2<T>::kQ[i]));
  return {power, q * r};
}

template <class T>
inline Vec<T> exp2(Vec<T> x) {
  const Exp2Parts<T> e = exp2_parts<T>(x);
  return fma(e.power, e.fraction, e.power);
}

template <class T>
inline Vec<T> tanh(Vec<T> x) {
  using V = Vec<Int<T>>;
  const V sign = bit_cast<V>(x) & (V{} + (Int<T>{1} << (8 * sizeof(T) - 1)));
  const Vec<T> magnitude = bit_cast<Vec<T>>(bit_cast<V>(x) ^ sign);
  const Exp2Parts<T> e = exp2_parts<T>(magnitude * (-2 * kLog2E<T>));
  const Vec<T> below_one = fma(e.power, e.fraction, e.power - static_cast<T>(1));
  const Vec<T> t = (Vec<T>{} - below_one) / (static_cast<T>(2) + below_one);
  return bit_cast<Vec<T>>(bit_cast<V>(t) | sign);
}

}  // namespace attile::ATTILE_ISA
