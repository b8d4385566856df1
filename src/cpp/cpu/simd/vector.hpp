// The vector type: gcc's and clang's vector extensions, as wide as the ISA tag says. Operators, comparisons and `?:` are the
// compilers'; what they cannot say well (fma, max, conversions of float16) comes from the ISA's own file, included before this.
// Everything lives in the ISA's namespace, so that no code of one level is ever linked into another.
#pragma once

#include <cstdint>

#ifndef ATTILE_ISA
#error "include simd/avx512.hpp, simd/avx2.hpp or simd/portable.hpp first"
#endif

namespace attile::ATTILE_ISA {

// W elements of T, any W: also half and double vectors, on the way between types.
template <class T, int W>
struct VectorOf {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
};
template <class T, int W>
using VecN = typename VectorOf<T, W>::type;

template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
template <class T>
using Vec = VecN<T, kLanes<T>>;

template <class T>
struct Bits;
template <>
struct Bits<float> {
  using Int = int32_t;
  static constexpr int kMantissa = 23, kBias = 127;
};
template <>
struct Bits<double> {
  using Int = int64_t;
  static constexpr int kMantissa = 52, kBias = 1023;
};
template <class T>
using Int = typename Bits<T>::Int;

template <class T>
inline constexpr T kInfinity = static_cast<T>(__builtin_inf());
template <class T>
inline constexpr T kLog2E = static_cast<T>(1.442695040888963407359924681);
template <class T>
inline constexpr T kLn2 = static_cast<T>(0.693147180559945309417232121);

template <class V>
inline V load(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
inline void store(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// All lanes x. Subtracting zero keeps the sign of -0, so compilers make it one broadcast.
template <class T, int W = kLanes<T>>
inline VecN<T, W> broadcast(T x) {
  return x - VecN<T, W>{};
}

template <class To, class From>
inline To bit_cast(From v) {
  static_assert(sizeof(To) == sizeof(From));
  return (To)v;
}

}  // namespace attile::ATTILE_ISA
