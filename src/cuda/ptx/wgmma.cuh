// Products of a warpgroup (wgmma) and what belongs to them. sm_90a.
//
// Tiles lie in shared memory as TMA writes boxes of 128-byte rows with the 128-byte swizzle: column blocks of 128 bytes, each of `rows` lines.
// Bases are multiples of 1024 bytes. A descriptor is kept as its low word, so that steps are 32-bit additions; the high word (swizzle, 1024
// bytes between groups of 8 lines) is the same for every tile.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/tile/element.cuh"

namespace attile::cuda::ptx {

// Registers of the threads of a warpgroup.
template <int kRegisters>
__device__ __forceinline__ void registers_raise() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void registers_lower() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Orders register writes before the wgmma that reads them; needed before the first wgmma of a batch.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// The wait has no register operands, so the compiler may move reads of an accumulator above it (ptxas then serialises the wgmmas, warning
// C7510). Pass each accumulator through here after its wait, and before the next batch that uses it.
template <int kCount>
__device__ __forceinline__ void pin(float (&r)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(r[i])::"memory");
}

__device__ __forceinline__ uint64_t descriptor(uint32_t low) {
  constexpr uint32_t kHigh = 1u << 30 | 1024 >> 4;
  uint64_t d;
  asm("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(low), "n"(kHigh));
  return d;
}
// Low words. The contracted dimension is contiguous (Q, K): 16 elements of 2 bytes along it are 32 bytes.
__device__ __forceinline__ uint32_t descriptor_k_major(uint32_t address) { return 1u << 16 | address >> 4; }
// The other dimension is contiguous (V as [key][d]): its column blocks are `block_bytes` apart. 16 keys are 2048 bytes.
__device__ __forceinline__ uint32_t descriptor_mn_major(uint32_t address, uint32_t block_bytes) { return block_bytes >> 4 << 16 | address >> 4; }

// wgmma_ss, wgmma_rs: d[n / 2] (+)= A (64 x 32 bytes) B (32 bytes x n) in float32; the shape is chosen by d's size. ss: A and B are descriptors;
// rs: A is in registers. kTransposeB: B is stored [k][n], n contiguous (16-bit elements only). accumulate: 0 overwrites d.
#define ATTILE_EIGHT(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define ATTILE_TEXT_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define ATTILE_REGISTERS_16 ATTILE_EIGHT(0), ATTILE_EIGHT(8)
#define ATTILE_TEXT_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22," \
  " %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ATTILE_REGISTERS_32 ATTILE_EIGHT(0), ATTILE_EIGHT(8), ATTILE_EIGHT(16), ATTILE_EIGHT(24)
#define ATTILE_TEXT_40 ATTILE_TEXT_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define ATTILE_REGISTERS_40 ATTILE_REGISTERS_32, ATTILE_EIGHT(32)
#define ATTILE_TEXT_48 ATTILE_TEXT_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define ATTILE_REGISTERS_48 ATTILE_REGISTERS_40, ATTILE_EIGHT(40)
#define ATTILE_TEXT_64 ATTILE_TEXT_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define ATTILE_REGISTERS_64 ATTILE_REGISTERS_48, ATTILE_EIGHT(48), ATTILE_EIGHT(56)
#define ATTILE_TEXT_80 ATTILE_TEXT_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define ATTILE_REGISTERS_80 ATTILE_REGISTERS_64, ATTILE_EIGHT(64), ATTILE_EIGHT(72)
#define ATTILE_TEXT_96 ATTILE_TEXT_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define ATTILE_REGISTERS_96 ATTILE_REGISTERS_80, ATTILE_EIGHT(80), ATTILE_EIGHT(88)
#define ATTILE_TEXT_128 ATTILE_TEXT_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96," \
  " %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115," \
  " %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define ATTILE_REGISTERS_128 ATTILE_REGISTERS_80, ATTILE_EIGHT(80), ATTILE_EIGHT(88), ATTILE_EIGHT(96), ATTILE_EIGHT(104), ATTILE_EIGHT(112), ATTILE_EIGHT(120)

// p: the operand that says whether to accumulate. The numbers are those of the operands after d's.
#define ATTILE_WGMMA_TEXT(n, k, type, p, d, a, b, rest) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %" #p ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k" #k ".f32." #type "." #type " {" d "}, " a ", %" #b ", p, 1, 1" rest ";\n}"

#define ATTILE_WGMMA(n, count, i0, i1, i2, i3, i4, i5, i6) \
  template <class Element, int kTransposeB> \
  __device__ __forceinline__ void wgmma_ss(float (&d)[count], uint64_t a, uint64_t b, int accumulate) { \
    if constexpr (std::is_same_v<Element, Bf16>) \
      asm volatile(ATTILE_WGMMA_TEXT(n, 16, bf16, i2, ATTILE_TEXT_##count, "%" #i0, i1, ", 0, %" #i3) \
                   : ATTILE_REGISTERS_##count : "l"(a), "l"(b), "r"(accumulate), "n"(kTransposeB)); \
    else if constexpr (std::is_same_v<Element, F16>) \
      asm volatile(ATTILE_WGMMA_TEXT(n, 16, f16, i2, ATTILE_TEXT_##count, "%" #i0, i1, ", 0, %" #i3) \
                   : ATTILE_REGISTERS_##count : "l"(a), "l"(b), "r"(accumulate), "n"(kTransposeB)); \
    else \
      asm volatile(ATTILE_WGMMA_TEXT(n, 32, e4m3, i2, ATTILE_TEXT_##count, "%" #i0, i1, "") \
                   : ATTILE_REGISTERS_##count : "l"(a), "l"(b), "r"(accumulate)); \
  } \
  template <class Element, int kTransposeB> \
  __device__ __forceinline__ void wgmma_rs(float (&d)[count], const uint32_t (&a)[4], uint64_t b, int accumulate) { \
    if constexpr (std::is_same_v<Element, Bf16>) \
      asm volatile(ATTILE_WGMMA_TEXT(n, 16, bf16, i5, ATTILE_TEXT_##count, "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}", i4, ", %" #i6) \
                   : ATTILE_REGISTERS_##count : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransposeB)); \
    else if constexpr (std::is_same_v<Element, F16>) \
      asm volatile(ATTILE_WGMMA_TEXT(n, 16, f16, i5, ATTILE_TEXT_##count, "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}", i4, ", %" #i6) \
                   : ATTILE_REGISTERS_##count : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransposeB)); \
    else \
      asm volatile(ATTILE_WGMMA_TEXT(n, 32, e4m3, i5, ATTILE_TEXT_##count, "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}", i4, "") \
                   : ATTILE_REGISTERS_##count : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate)); \
  }

ATTILE_WGMMA(32, 16, 16, 17, 18, 19, 20, 21, 22)
ATTILE_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
ATTILE_WGMMA(80, 40, 40, 41, 42, 43, 44, 45, 46)
ATTILE_WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54)
ATTILE_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
ATTILE_WGMMA(160, 80, 80, 81, 82, 83, 84, 85, 86)
ATTILE_WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102)
ATTILE_WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134)

}  // namespace attile::cuda::ptx
