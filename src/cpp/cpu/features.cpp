#include "cpu/features.hpp"

#include <cstdint>
#include <initializer_list>

#if defined(__unix__)
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#endif

namespace attile {
namespace {

struct Features {
  bool avx2 = false, avx512 = false, avx512_bf16 = false, fast_bf16_dots = false, amx_bf16 = false;
};

#if ATTILE_AMX_EMULATED
constexpr bool kEmulatedTiles = true;
#else
constexpr bool kEmulatedTiles = false;
#endif

#if defined(__x86_64__)

struct Registers {
  uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r{};
  if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return {};
  return r;
}

uint64_t xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

bool all(uint32_t word, std::initializer_list<int> bits) {
  for (const int bit : bits)
    if (!(word >> bit & 1)) return false;
  return true;
}

// Tile data is a register set that Linux hands out on request, for the whole process.
bool tiles_granted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Features detect() {
  Features f;
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven1 = cpuid(7, 1), extended = cpuid(0x80000001u, 0);
  constexpr int kOsxsave = 27;
  if (!all(one.c, {kOsxsave})) return f;
  const uint64_t saved = xcr0();
  const auto saves = [&](uint64_t mask) { return (saved & mask) == mask; };
  constexpr uint64_t kYmm = 0x6, kZmm = 0xE6, kTiles = 0x60000;

  // leaf 1 ecx: FMA 12, MOVBE 22, POPCNT 23, AVX 28, F16C 29; leaf 7 ebx: BMI1 3, AVX2 5, BMI2 8; LZCNT 5
  f.avx2 = saves(kYmm) && all(one.c, {12, 22, 23, 28, 29}) && all(seven.b, {3, 5, 8}) && all(extended.c, {5});
  // leaf 7 ebx: F 16, DQ 17, CD 28, BW 30, VL 31
  f.avx512 = f.avx2 && saves(kZmm) && all(seven.b, {16, 17, 28, 30, 31});
  // leaf 7.1 eax: AVX512_BF16 5
  f.avx512_bf16 = f.avx512 && all(seven1.a, {5});
  const Registers vendor = cpuid(0, 0);
  const bool amd = vendor.b == 0x68747541 && vendor.d == 0x69746E65 && vendor.c == 0x444D4163;  // "AuthenticAMD"
  f.fast_bf16_dots = f.avx512_bf16 && amd;
  // leaf 7 edx: AMX-BF16 22, AMX-TILE 24
  f.amx_bf16 = f.avx512_bf16 && (kEmulatedTiles || (saves(kTiles) && all(seven.d, {22, 24}) && tiles_granted()));
  return f;
}

#else

Features detect() { return {}; }

#endif

const Features& features() {
  static const Features f = detect();
  return f;
}

}  // namespace

bool has_avx2() { return features().avx2; }
bool has_avx512() { return features().avx512; }
bool has_avx512_bf16() { return features().avx512_bf16; }
bool fast_bf16_dots() { return features().fast_bf16_dots; }
bool has_amx_bf16() { return features().amx_bf16; }

bool has_large_l2() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const bool large = sysconf(_SC_LEVEL2_CACHE_SIZE) >= 2L << 20;
  return large;
#else
  return false;
#endif
}

std::string cpu_features_json() {
  const struct {
    const char* name;
    bool present;
  } all[] = {{"avx2", has_avx2()}, {"avx512", has_avx512()}, {"avx512_bf16", has_avx512_bf16()}, {"amx_bf16", has_amx_bf16()}};
  std::string json;
  for (const auto& [name, present] : all)
    json += (json.empty() ? "{\"" : ", \"") + std::string(name) + "\": " + (present ? "true" : "false");
  return json + "}";
}

}  // namespace attile
