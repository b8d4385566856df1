// What of CUDA the kernel's source needs, for one block at a time on the CPU: its threads are fibers.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <type_traits>
#include <utility>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__
#define __align__(x)
using std::max;
using std::min;

inline void must(bool good, const char* what) {
  if (!good) std::printf("WRONG: %s\n", what), std::fflush(stdout), std::abort();
}

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};
struct int2 {
  int x, y;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline uint32_t __float_as_uint(float x) { uint32_t y; std::memcpy(&y, &x, 4); return y; }
inline float __uint_as_float(uint32_t x) { float y; std::memcpy(&y, &x, 4); return y; }
template <class Element>
float to_float(uint16_t x) {
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) return __uint_as_float(uint32_t(x) << 16);
  _Float16 h;
  std::memcpy(&h, &x, 2);
  return h;
}
template <class Element>
uint16_t from_float(float x) {
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    const uint32_t w = __float_as_uint(x);
    return std::isnan(x) ? 0x7fff : (w + 0x7fff + (w >> 16 & 1)) >> 16;
  }
  const _Float16 h = static_cast<_Float16>(x);
  uint16_t y;
  std::memcpy(&y, &h, 2);
  return y;
}
template <class T>
T __ldg(const T* p) {
  T x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline unsigned atomicAdd(unsigned* p, unsigned x) { return std::exchange(*p, *p + x); }
inline unsigned atomicExch(unsigned* p, unsigned x) { return std::exchange(*p, x); }

struct CUtensorMap {
  const char* base;
  int64_t dims[5], strides[4];
  int box_rows, box_columns = 64;
  const char *low, *high;  // the array's memory
};

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, gridDim;
alignas(1024) inline uint8_t raw[232448];

// ---- fibers ----
struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done = false;
};
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline int running;
inline long idle_rounds;
inline void yield() { swapcontext(&fibers[running].context, &scheduler); }

struct Warp {
  int arrived = 0;
  unsigned generation = 0;
  std::array<uint64_t, 32> values[2];
};
inline Warp warps[32];
// Every lane's value.
inline const std::array<uint64_t, 32>& exchange(uint64_t x) {
  Warp& w = warps[threadIdx.x / 32];
  const unsigned generation = w.generation;
  auto& values = w.values[generation % 2];
  values[threadIdx.x % 32] = x;
  if (++w.arrived == 32) w.arrived = 0, ++w.generation;
  while (w.generation == generation) yield();
  return values;
}
inline void __syncwarp() { exchange(0); }
template <class T>
T __shfl_sync(unsigned, T x, int lane) {
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof x);
  bits = exchange(bits)[lane];
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
template <class T>
T __shfl_xor_sync(unsigned m, T x, int mask) {
  return __shfl_sync(m, x, threadIdx.x % 32 ^ mask);
}
inline bool __any_sync(unsigned, bool x) {
  bool any = false;
  for (auto v : exchange(x)) any |= v != 0;
  return any;
}
inline int block_arrived, block_threads;
inline unsigned block_generation;
inline void __syncthreads() {
  const unsigned generation = block_generation;
  if (++block_arrived == block_threads) block_arrived = 0, ++block_generation;
  while (block_generation == generation) yield();
}
