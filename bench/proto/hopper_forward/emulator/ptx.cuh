// ptx.cuh for the CPU: every function of it, a thread being a fiber that yields where the real one waits. Copies and products are done
// at once when issued, so a missing wait is not seen here; wrong addresses, layouts, phases, counts and deadlocks are.
#pragma once

#include "cuda_stubs.hpp"

namespace ptx {
enum : uint64_t { kEvictFirst, kEvictLast };

inline uint32_t smem_address(const void* p) { return static_cast<const uint8_t*>(p) - raw; }
inline uint8_t* at(uint32_t a) {
  must(a < sizeof(raw), "a shared address");
  return raw + a;
}
inline uint32_t swizzle(uint32_t a, int columns = 64) { return a ^ ((a >> 7 & (columns == 64 ? 7 : 3)) << 4); }

struct Barrier {
  int count = 0, pending = 0, bytes = 0;
  uint32_t phase = 0;
  void check() {
    must(pending >= 0, "more arrivals than the barrier expects");
    if (pending == 0 && bytes == 0) ++phase, pending = count;
  }
};
inline std::map<uint32_t, Barrier> barriers;
inline Barrier& barrier(uint32_t a) {
  must(barriers.count(a), "a barrier that was initialised");
  return barriers[a];
}
inline void mbarrier_init(uint32_t a, int n) { barriers[a] = {n, n, 0, 0}; }
inline void mbarrier_arrive(uint32_t a) { --barrier(a).pending, barrier(a).check(); }
inline void mbarrier_arrive_if(uint32_t a, bool yes) {
  if (yes) mbarrier_arrive(a);
}
inline void mbarrier_arrive_expect(uint32_t a, int bytes) { barrier(a).bytes += bytes, mbarrier_arrive(a); }
inline void mbarrier_wait(uint32_t a, uint32_t parity) {
  while ((barrier(a).phase & 1) == parity) yield();
}
inline void fence_barrier_init() {}

inline void tma_prefetch_descriptor(const CUtensorMap*) {}
// A box of 64 columns and box_rows rows, between shared memory and the tensor.
template <class F>
void for_box(uint32_t smem, const CUtensorMap& m, int c0, int c1, int c2, int c3, int c4, F f) {
  must(smem % 1024 == 0, "a copy's shared address");
  const int width = m.box_columns;  // 64: 128-byte swizzle; 32: 64-byte swizzle
  for (int i = 0; i < m.box_rows; ++i)
    for (int x = 0; x < width; ++x) {
      const int64_t c[5] = {c0 + x, c1 + i, c2, c3, c4};
      bool inside = true;
      for (int n = 0; n < 5; ++n) inside &= c[n] >= 0 && c[n] < m.dims[n];
      uint64_t address = reinterpret_cast<uint64_t>(m.base) + c[0] * 2;
      for (int n = 1; n < 5; ++n) address += uint64_t(c[n]) * uint64_t(m.strides[n - 1]);
      const char* element = reinterpret_cast<const char*>(address);
      if (inside) must(element >= m.low && element < m.high, "a copy inside its array");
      f(at(swizzle(smem + i * width * 2 + x * 2, width)), const_cast<char*>(element), inside);
    }
}
inline void tma_load_5d(uint32_t to, const CUtensorMap* m, uint32_t bar, uint64_t, int c0, int c1, int c2, int c3, int c4) {
  for_box(to, *m, c0, c1, c2, c3, c4, [](uint8_t* s, char* g, bool inside) {
    const uint16_t zero = 0;
    std::memcpy(s, inside ? static_cast<const void*>(g) : &zero, 2);
  });
  barrier(bar).bytes -= m->box_rows * m->box_columns * 2;
  barrier(bar).check();
}
inline void tma_load_5d_multicast(uint32_t, const CUtensorMap*, uint32_t, uint64_t, uint16_t, int, int, int, int, int) { must(false, "no clusters here"); }
inline void fence_async_proxy() {}
inline void tma_store_5d_if(bool yes, uint32_t from, const CUtensorMap* m, int c0, int c1, int c2, int c3, int c4) {
  if (yes) for_box(from, *m, c0, c1, c2, c3, c4, [](uint8_t* s, char* g, bool inside) {
    if (inside) std::memcpy(g, s, 2);
  });
}
inline void tma_store_commit() {}
inline void tma_store_wait_read() {}

inline uint32_t cluster_rank() { return 0; }
inline void cluster_sync() {}
inline void cluster_arrive() {}
inline void cluster_wait() {}
inline void mbarrier_arrive_remote_if(uint32_t, uint32_t, bool) { must(false, "no clusters here"); }
inline bool elect_one() { return threadIdx.x % 32 == 0; }

template <int>
void registers_raise() {}
template <int>
void registers_lower() {}

struct NamedBarrier {
  int arrived = 0;
  unsigned generation = 0;
};
inline NamedBarrier named[16];
inline void named_barrier_arrive(int id, int threads) {
  must(id > 0 && id < 16, "a barrier's number");
  if (++named[id].arrived == threads) named[id].arrived = 0, ++named[id].generation;
}
inline void named_barrier_sync(int id, int threads) {
  const unsigned generation = named[id].generation;
  named_barrier_arrive(id, threads);
  while (named[id].generation == generation) yield();
}

inline float exp2_approx(float x) { return std::exp2(x); }
inline float log2_approx(float x) { return std::log2(x); }
inline float reciprocal_approx(float x) { return 1 / x; }
inline float exp2_polynomial(float x, float scale, float shift) { return std::exp2(x * scale + shift); }
template <class Element>
uint32_t pack(float low, float high) {
  return from_float<Element>(low) | uint32_t(from_float<Element>(high)) << 16;
}
uint32_t pack_four(float, float, float, float);  // e4m3: not here
template <class Element>
void unpack(uint32_t two, float& low, float& high) {
  low = to_float<Element>(two & 0xffff), high = to_float<Element>(two >> 16);
}
inline void load_matrix_x4(uint32_t address, uint32_t (&x)[4]) {
  const int lane = threadIdx.x % 32;
  const auto addresses = exchange(address);
  for (int j = 0; j < 4; ++j) std::memcpy(&x[j], at(uint32_t(addresses[j * 8 + lane / 4]) + lane % 4 * 4), 4);
}
inline void store_matrix_x4(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const uint32_t x[4] = {a, b, c, d};
  const int lane = threadIdx.x % 32;
  const auto addresses = exchange(address);
  for (int j = 0; j < 4; ++j) std::memcpy(at(uint32_t(addresses[j * 8 + lane / 4]) + lane % 4 * 4), &x[j], 4);
}
}  // namespace ptx
