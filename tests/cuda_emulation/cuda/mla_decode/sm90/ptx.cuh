// In place of src/cuda/mla_decode/sm90/ptx.cuh.
#pragma once

#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/math.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace attile::cuda::mla_sm90 {

inline bool mbarrier_test(uint32_t bar, uint32_t parity) { return emulation::barrier_passed(bar, parity); }
inline void mbarrier_wait(uint32_t bar, uint32_t parity) { emulation::barrier_wait(bar, parity); }

inline uint32_t zero_behind(uint32_t) { return 0; }

inline uint64_t policy_evict_first() { return 0; }
inline uint64_t policy_evict_normal() { return 0; }
inline void tma_load_3d(uint32_t to, const CUtensorMap* map, uint32_t bar, uint64_t, int c0, int c1, int c2) {
  emulation::tensor_load(to, *map, bar, {c0, c1, c2, 0});
}

inline void cp_async_16_once(uint32_t to, const void* from, int bytes) { ptx::cp_async_16(to, from, bytes); }
// Of this order the emulation knows no more than that nothing comes later.
inline void cp_async_arrive(uint32_t bar) {
  ptx::cp_async_wait();
  emulation::barrier_arrive(bar, 0);
}

inline void touch(const void*) {}
inline void prefetch_l2(const void*) {}

inline uint32_t e4m3_to_f16(uint16_t two) {
  uint32_t x = 0;
  for (int i = 0; i < 2; ++i) {
    const uint32_t byte = two >> 8 * i & 0xff, sign = byte >> 7 << 15;
    uint32_t magnitude = (byte & 0x7f) == 0x7f ? 0x7fff : ((byte & 0x7f) + (8 << 3)) << 7;
    if ((byte & 0x78) == 0) {  // m * 2^-9
      const uint32_t m = byte & 7;
      magnitude = m == 0 ? 0 : m == 1 ? 6 << 10 : m < 4 ? 7 << 10 | (m & 1) << 9 : 8 << 10 | (m & 3) << 8;
    }
    x |= (sign | magnitude) << 16 * i;
  }
  return x;
}

inline uint32_t load_word(const void* p) { return __ldg(static_cast<const uint32_t*>(p)); }

inline void wait_at_least(const int* p, int n) {
  while (*p < n) emulation::wait_for_others();
}
inline void add_release(int* p, int n) {
  *p += n;
  emulation::made_progress();
}

inline uint32_t cluster_address(uint32_t address, uint32_t rank) { return emulation::cluster_address(address, rank); }
inline void store_cluster(uint32_t to, uint32_t bar, float a, float b, float c, float d) {
  const float four[] = {a, b, c, d};
  emulation::store_to_cluster(to, bar, four, sizeof four);
}
inline void mbarrier_wait_cluster(uint32_t bar, uint32_t parity) { emulation::barrier_wait(bar, parity); }

inline uint64_t keys_descriptor(uint32_t address) { return ptx::descriptor(ptx::descriptor_k_major(address)); }
inline uint64_t values_descriptor(uint32_t address, uint32_t box_bytes) { return ptx::descriptor(ptx::descriptor_mn_major(address, box_bytes)); }

}  // namespace attile::cuda::mla_sm90
