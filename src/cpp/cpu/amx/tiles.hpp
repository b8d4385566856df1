// The tile registers of AMX: eight of them, each 16 rows of 64 bytes.
//
//   C [16][16] float32  +=  A [16][32] bfloat16  times  B [16][16][2] bfloat16
//   c[m][n]             +=  sum_k a[m][2 k] b[k][n][0]  +  sum_k a[m][2 k + 1] b[k][n][1]
//
// so A is row-major as it lies in memory, and B holds pairs of neighbouring rows of the matrix. Rows may lie any number of bytes
// apart. Subnormals are zero, whatever the MXCSR says; rounding is to nearest even. A tile dot takes 16 cycles (512 multiply-adds a
// cycle), a load from L1 8, a store 16. An input register that is loaded again while its last dot waits stalls both: take turns.
//
// A TileScope shapes the registers, for this thread, and gives them back; everything below happens within one.
// With ATTILE_AMX_EMULATED the registers are memory of the thread and a dot is AVX-512, in the order that Intel's manual states:
// the sums over even and over odd elements apart, then added. For tests on machines without AMX.
#pragma once

#include "cpu/simd/vector.hpp"

namespace attile::ATTILE_ISA {

inline constexpr int kTiles = 8, kTileRows = 16, kTileRowBytes = 64, kTileBytes = kTileRows * kTileRowBytes;

#if ATTILE_AMX_EMULATED

// A static function's variable stays in its own object: no symbol of this level for the linker to choose from.
static inline char (*tile_registers())[kTileBytes] {
  alignas(64) static thread_local char registers[kTiles][kTileBytes];
  return registers;
}

class TileScope {
 public:
  TileScope() {
    constexpr char kNoNumber = -1;  // NaN, so that a register that nobody loaded shows
    __builtin_memset(tile_registers(), kNoNumber, kTiles * kTileBytes);
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

template <int kTile>
inline void tile_zero() {
  __builtin_memset(tile_registers()[kTile], 0, kTileBytes);
}

template <int kTile>
inline void tile_load(const void* p, int64_t row_bytes = kTileRowBytes) {
  for (int m = 0; m < kTileRows; ++m)
    __builtin_memcpy(tile_registers()[kTile] + m * kTileRowBytes, static_cast<const char*>(p) + m * row_bytes, kTileRowBytes);
}

template <int kTile>
inline void tile_load_passing(const void* p) {
  tile_load<kTile>(p);
}

template <int kTile>
inline void tile_store(void* p, int64_t row_bytes = kTileRowBytes) {
  for (int m = 0; m < kTileRows; ++m)
    __builtin_memcpy(static_cast<char*>(p) + m * row_bytes, tile_registers()[kTile] + m * kTileRowBytes, kTileRowBytes);
}

// Not inlined: between the two settings of the MXCSR nothing of the caller's may happen.
static inline __attribute__((noinline)) void emulate_dot_bf16(char* c, const char* a, const char* b) {
  using Words = VecN<uint32_t, 16>;
  using Floats = VecN<float, 16>;
  constexpr unsigned kFlushSubnormals = 0x9FC0;  // to nearest even, no traps
  const unsigned mode = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(kFlushSubnormals);
  __asm__ volatile("" ::: "memory");
  for (int m = 0; m < kTileRows; ++m) {
    Floats even{}, odd{};
    for (int k = 0; k < kTileRows; ++k) {
      const uint32_t pair = load<uint32_t>(a + m * kTileRowBytes + k * 4);
      const Words low = Words{} + (pair << 16), high = Words{} + (pair & 0xFFFF0000u), row = load<Words>(b + k * kTileRowBytes);
      even = fma((Floats)low, (Floats)(row << 16), even);
      odd = fma((Floats)high, (Floats)(row & 0xFFFF0000u), odd);
    }
    store(c + m * kTileRowBytes, load<Floats>(c + m * kTileRowBytes) + (even + odd));
  }
  __asm__ volatile("" ::: "memory");
  __builtin_ia32_ldmxcsr(mode);
}

template <int kC, int kA, int kB>
inline void tile_dot_bf16() {
  static_assert(kC != kA && kC != kB && kA != kB, "the instruction wants three registers");
  emulate_dot_bf16(tile_registers()[kC], tile_registers()[kA], tile_registers()[kB]);
}

#else

class TileScope {
 public:
  inline __attribute__((always_inline)) TileScope() {
    struct alignas(64) {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } config = {};
    static_assert(sizeof config == 64);
    config.palette = 1;
    for (int i = 0; i < kTiles; ++i) {
      config.row_bytes[i] = kTileRowBytes;
      config.rows[i] = kTileRows;
    }
    // The whole of it is an input: with 8 bytes declared, as gcc 12 does, the other stores go away.
    __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  inline __attribute__((always_inline)) ~TileScope() { __asm__ volatile("tilerelease" ::: "memory"); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// Volatile instructions keep their order among themselves, and the memory clobbers keep loads and stores behind what they read
// and before what they write; arithmetic moves freely.
template <int kTile>
inline __attribute__((always_inline)) void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

template <int kTile>
inline __attribute__((always_inline)) void tile_load(const void* p, int64_t row_bytes = kTileRowBytes) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(row_bytes), "i"(kTile) : "memory");
}

// A tile that is not wanted again soon: L1 is left to others.
template <int kTile>
inline __attribute__((always_inline)) void tile_load_passing(const void* p) {
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(int64_t{kTileRowBytes}), "i"(kTile) : "memory");
}

template <int kTile>
inline __attribute__((always_inline)) void tile_store(void* p, int64_t row_bytes = kTileRowBytes) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(row_bytes), "i"(kTile) : "memory");
}

template <int kC, int kA, int kB>
inline __attribute__((always_inline)) void tile_dot_bf16() {
  static_assert(kC != kA && kC != kB && kA != kB, "the instruction wants three registers");
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

#endif

}  // namespace attile::ATTILE_ISA
