// In place of src/cuda/ptx/wgmma.cuh, whose words say what the operands are. Products are worked out when they are waited for: a missing wait, and
// memory that is given back too early, show. Sums are float32, rounded to the nearest.
#pragma once

#include <type_traits>

#include "cuda/tile/element.cuh"

namespace attile::cuda::ptx {

template <int>
void registers_raise() {}
template <int>
void registers_lower() {}

inline void wgmma_fence() {}
inline void wgmma_commit() { emulation::products_commit(); }
template <int kPending>
void wgmma_wait() {
  emulation::products_wait(kPending);
}
template <int kCount>
void pin(float (&r)[kCount]) {
  asm volatile("" ::"r"(r) : "memory");
}

inline uint64_t descriptor(uint32_t low) { return uint64_t{1u << 30 | 1024 >> 4} << 32 | low; }
inline uint32_t descriptor_k_major(uint32_t address) { return 1u << 16 | address >> 4; }
inline uint32_t descriptor_mn_major(uint32_t address, uint32_t block_bytes) { return block_bytes >> 4 << 16 | address >> 4; }

template <class Element>
constexpr emulation::Type type_of() {
  return Element::kBytes == 1 ? emulation::Type::e4m3 : std::is_same_v<Element, Bf16> ? emulation::Type::bf16 : emulation::Type::f16;
}

template <class Element, int kTransposeB, int kRegs>
void wgmma_ss(float (&d)[kRegs], uint64_t a, uint64_t b, int accumulate) {
  emulation::product({type_of<Element>(), kRegs * 2, kTransposeB != 0, accumulate != 0, true, a, b}, d, nullptr);
}
template <class Element, int kTransposeB, int kRegs>
void wgmma_rs(float (&d)[kRegs], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  emulation::product({type_of<Element>(), kRegs * 2, kTransposeB != 0, accumulate != 0, false, 0, b}, d, a);
}

}  // namespace attile::cuda::ptx
