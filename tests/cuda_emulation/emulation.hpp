// CUDA C++ for an ordinary compiler: included ahead of everything, as nvcc does with its own. The threads of a block are fibers of one
// thread; what lanes of a warp or threads of a block do together waits until all have come. See emulation.cpp.
//
// Not emulated: the truncation of tensor cores, the approximations of the special function unit but for flushed results, and memory models:
// a fiber runs undisturbed to its next collective operation, so of races only those are seen that this order brings to light.
#pragma once

#include <math.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#include "cuda.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static  // `extern __shared__` is rewritten to `extern`: an array of emulation.cpp

using std::max;
using std::min;

struct Index3 {
  unsigned x, y;
};
struct dim3 {
  unsigned x = 1, y = 1;
};
extern Index3 threadIdx, blockIdx, gridDim;

struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct uint2 {
  uint32_t x, y;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace emulation {

inline constexpr int kWarp = 32;
inline constexpr unsigned kSharedBytes = 227 << 10;  // of sm_90
extern unsigned shared_limit;                         // of the kernel that runs: what its own GPUs have

[[noreturn]] void fail(const char* what);

// ---- a warp ----

// What a lane brings to an operation of its warp, and what it receives.
struct Lane {
  uint32_t x[6];
};
using Lanes = Lane[kWarp];

// Waits for all lanes; the last runs `operation` on what they brought. Lanes that wait for different operations are an error.
Lane together(const Lane& mine, void (*operation)(Lanes&));

template <class To, class From>
To bits(const From& x) {
  To y{};
  memcpy(&y, &x, std::min(sizeof x, sizeof y));
  return y;
}

// x[0]: any word or two; x[5]: the lane it is wanted from.
template <class T>
T shuffle(T x, int from) {
  static_assert(sizeof(T) <= 8);
  Lane lane = bits<Lane>(x);
  lane.x[5] = static_cast<uint32_t>(from);
  return bits<T>(together(lane, [](Lanes& lanes) {
    Lanes before;
    memcpy(before, lanes, sizeof before);
    for (Lane& l : lanes) {
      if (l.x[5] >= kWarp) fail("a shuffle from a lane that does not exist");
      l = before[l.x[5]];
    }
  }));
}

// ---- a launch ----

// Runs the blocks one after another. kernel<<<blocks, threads, shared_bytes, stream>>>(arguments) is rewritten to this.
void launch(int64_t blocks, int threads, int64_t shared_bytes, void* stream, const std::function<void()>& thread);

// Runs the blocks side by side: they may wait for each other. `cluster` blocks of one x are a cluster.
void launch_together(unsigned x, unsigned y, unsigned cluster, int threads, int64_t shared_bytes, const std::function<void()>& thread);
void wait_for_others();
void made_progress();
extern unsigned grid_arrivals;  // of the launch

// ---- shared memory ----

// The launch's dynamic shared memory. An access that is misaligned or leaves it is an error.
char* shared_at(uint32_t address, uint32_t bytes);
uint32_t shared_address(const void* p);

// The shared memory of block `rank` of the cluster: an address that is only for store_to_cluster, which the barrier there counts.
uint32_t cluster_address(uint32_t address, uint32_t rank);
void store_to_cluster(uint32_t to, uint32_t bar, const void* from, uint32_t bytes);

// A copy that arrives when its thread waits for its copies. Zeros follow after `bytes`.
void copy_later(uint32_t to, const void* from, int size, int bytes);
void wait_for_copies();
void commit_copies();
void wait_for_groups(int newest);  // that may be on their way still

// ---- mbarriers, named barriers ----

void barrier_init(uint32_t bar, int arrivals);
void barrier_arrive(uint32_t bar, int bytes);
void barrier_wait(uint32_t bar, uint32_t parity);
bool barrier_passed(uint32_t bar, uint32_t parity);
void named_barrier(int id, int count, bool wait);

// ---- TMA ----

void tensor_load(uint32_t to, const CUtensorMap& map, uint32_t bar, std::array<int, 5> at);
void tensor_store(uint32_t from, const CUtensorMap& map, std::array<int, 5> at);
void wait_for_stores();

// ---- products of a warpgroup ----

enum class Type { bf16, f16, e4m3 };
struct Product {
  Type type;
  int columns;
  bool transpose_b, accumulate, a_in_shared;
  uint64_t a, b;
};
uint8_t to_e4m3(float x);
float from_e4m3(uint8_t x);
void product(const Product& p, float* d, const uint32_t* a);
void products_commit();
void products_wait(int pending);

}  // namespace emulation

// ---- what CUDA's headers declare ----

void __syncthreads();
int __syncthreads_or(int x);
int __syncthreads_count(int x);

inline int lane_of_thread() { return static_cast<int>(threadIdx.x % emulation::kWarp); }
template <class T>
T __shfl_sync(unsigned, T x, int lane) {
  return emulation::shuffle(x, lane);
}
template <class T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  return emulation::shuffle(x, lane_of_thread() ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned, T x, int delta) {
  return emulation::shuffle(x, lane_of_thread() < delta ? lane_of_thread() : lane_of_thread() - delta);
}
inline unsigned __ballot_sync(unsigned, bool x) {
  return emulation::together({{x}},
                             [](emulation::Lanes& lanes) {
                               uint32_t all = 0;
                               for (int l = 0; l < emulation::kWarp; ++l) all |= lanes[l].x[0] << l;
                               for (emulation::Lane& lane : lanes) lane.x[0] = all;
                             })
      .x[0];
}
inline void __syncwarp() {
  emulation::together({}, [](emulation::Lanes&) {});
}
template <class Join>
uint32_t reduce_lanes(uint32_t x, Join) {
  return emulation::together({{x}},
                             [](emulation::Lanes& lanes) {
                               uint32_t all = lanes[0].x[0];
                               for (const emulation::Lane& lane : lanes) all = Join{}(all, lane.x[0]);
                               for (emulation::Lane& lane : lanes) lane.x[0] = all;
                             })
      .x[0];
}
inline int __reduce_min_sync(unsigned, int x) {
  return static_cast<int>(reduce_lanes(static_cast<uint32_t>(x), [](uint32_t a, uint32_t b) { return static_cast<uint32_t>(min(static_cast<int>(a), static_cast<int>(b))); }));
}
inline int __reduce_max_sync(unsigned, int x) {
  return static_cast<int>(reduce_lanes(static_cast<uint32_t>(x), [](uint32_t a, uint32_t b) { return static_cast<uint32_t>(max(static_cast<int>(a), static_cast<int>(b))); }));
}
inline uint32_t __reduce_or_sync(unsigned, uint32_t x) {
  return reduce_lanes(x, [](uint32_t a, uint32_t b) { return a | b; });
}
inline uint32_t __reduce_and_sync(unsigned, uint32_t x) {
  return reduce_lanes(x, [](uint32_t a, uint32_t b) { return a & b; });
}
inline unsigned atomicAdd(unsigned* p, unsigned x) { return std::exchange(*p, *p + x); }
inline int atomicMin(int* p, int x) { return std::exchange(*p, min(*p, x)); }
inline int atomicMax(int* p, int x) { return std::exchange(*p, max(*p, x)); }
inline int __reduce_add_sync(unsigned, int x) {
  return static_cast<int>(emulation::together({{static_cast<uint32_t>(x)}},
                                              [](emulation::Lanes& lanes) {
                                                uint32_t sum = 0;
                                                for (const emulation::Lane& lane : lanes) sum += lane.x[0];
                                                for (emulation::Lane& lane : lanes) lane.x[0] = sum;
                                              })
                              .x[0]);
}
inline bool __all_sync(unsigned mask, bool x) { return __ballot_sync(mask, x) == ~0u; }
inline bool __any_sync(unsigned mask, bool x) { return __ballot_sync(mask, x) != 0; }

inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint32_t __float_as_uint(float x) { return emulation::bits<uint32_t>(x); }
// Whose arithmetic makes one NaN only, without a sign.
inline int32_t __float_as_int(float x) { return x != x ? 0x7fffffff : emulation::bits<int32_t>(x); }
inline float __uint_as_float(uint32_t x) { return emulation::bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulation::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulation::bits<double>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
template <class T>
T __ldg(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T)) emulation::fail("a load that is not aligned");
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return __ldg(p);
}
inline float __fdividef(float x, float y) { return x / y; }
inline uint32_t __vmaxu2(uint32_t a, uint32_t b) { return max(a >> 16, b >> 16) << 16 | max(a & 0xffff, b & 0xffff); }
// A byte of all ones where the bytes differ.
inline uint32_t __vcmpne4(uint32_t x, uint32_t y) {
  uint32_t r = 0;
  for (int i = 0; i < 32; i += 8) r |= (x >> i & 0xff) != (y >> i & 0xff) ? 0xffu << i : 0;
  return r;
}
// The largest of each half, as unsigned numbers.
inline uint32_t __vimax3_u16x2(uint32_t x, uint32_t y, uint32_t z) {
  const auto largest = [&](uint32_t half) { return std::max({x & half, y & half, z & half}); };
  return largest(0xffff) | largest(0xffff0000u);
}
// Four of the eight bytes of x and y.
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t which) {
  const uint64_t both = static_cast<uint64_t>(y) << 32 | x;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) r |= static_cast<uint32_t>(both >> 8 * (which >> 4 * i & 7) & 0xff) << 8 * i;
  return r;
}
