// The ceilings of this machine, called by roofline.py: independent multiply-adds in registers, and reading memory once, on one or more
// threads at a time. A peak has a name, tells whether this CPU has it, and how many operations a round is (0: it reads memory).
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cpuid.h>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

volatile float sink;

// ---- multiply-adds: more chains than latency times rate -------------------------------------------------------------------

constexpr int kChains = 12;

__attribute__((target("avx512f"))) void fma_avx512(int64_t rounds) {
  __m512 c[kChains], a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  for (__m512& x : c) x = a;
  asm volatile("" : "+v"(a), "+v"(b));
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) c[k] = _mm512_fmadd_ps(a, b, c[k]);
  for (const __m512& x : c) sink = x[0];
}

__attribute__((target("avx2,fma"))) void fma_avx2(int64_t rounds) {
  __m256 c[kChains], a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
  for (__m256& x : c) x = a;
  asm volatile("" : "+x"(a), "+x"(b));
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) c[k] = _mm256_fmadd_ps(a, b, c[k]);
  for (const __m256& x : c) sink = x[0];
}

__attribute__((target("avx512f,avx512bf16"))) void dot_avx512_bf16(int64_t rounds) {
  __m512 c[kChains];
  __m512i bits = _mm512_set1_epi32(0x3F003E80);  // 0.5 and 0.25
  asm volatile("" : "+v"(bits));
  const auto ab = reinterpret_cast<__m512bh>(bits);
  for (__m512& x : c) x = _mm512_setzero_ps();
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) c[k] = _mm512_dpbf16_ps(c[k], ab, ab);
  for (const __m512& x : c) sink = x[0];
}

// Four sums, so that no tile waits for itself; inputs are ones, for a multiplier at rest draws less and clocks higher.
__attribute__((target("amx-tile,amx-bf16"))) void dot_amx_bf16(int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shape;
  asm volatile("" : : "r"(&shape) : "memory");
  _tile_loadconfig(&shape);
  alignas(64) uint16_t ones[16 * 32];
  for (uint16_t& x : ones) x = 0x3F80;
  asm volatile("" : : "r"(&ones) : "memory");
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, ones, 64);
  _tile_loadd(5, ones, 64);
  _tile_loadd(6, ones, 64);
  _tile_loadd(7, ones, 64);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 7);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 5, 6);
  }
  _tile_release();
}

bool has_amx_bf16() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// ---- memory: several streams, as far apart as they can be ----------------------------------------------------------------

template <int kStreams>
__attribute__((target("avx2"))) void read_memory(const char* memory, int64_t bytes) {
  const int64_t part = bytes / kStreams / 64 * 64;
  __m256i sum[kStreams] = {};
  for (int64_t i = 0; i < part; i += 64)
    for (int s = 0; s < kStreams; ++s) {
      const auto* p = reinterpret_cast<const __m256i*>(memory + s * part + i);
      sum[s] = _mm256_add_epi32(sum[s], _mm256_add_epi32(_mm256_loadu_si256(p), _mm256_loadu_si256(p + 1)));
    }
  for (const __m256i& x : sum) sink = static_cast<float>(_mm256_extract_epi32(x, 0));
}

// ---- the table -------------------------------------------------------------------------------------------------------------

struct Peak {
  const char* name;
  bool (*here)();
  double operations;  // a round
  void (*compute)(int64_t rounds);
  void (*read)(const char* memory, int64_t bytes);
};

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

const Peak kPeaks[] = {
    {"avx2", has_avx2, kChains * 8 * 2, fma_avx2, nullptr},
    {"avx512", [] { return __builtin_cpu_supports("avx512f") != 0; }, kChains * 16 * 2, fma_avx512, nullptr},
    {"avx512_bf16", [] { return __builtin_cpu_supports("avx512bf16") != 0; }, kChains * 16 * 4, dot_avx512_bf16, nullptr},
    {"amx_bf16", has_amx_bf16, 4 * 16 * 16 * 32 * 2, dot_amx_bf16, nullptr},
    {"read1", has_avx2, 0, nullptr, read_memory<1>},
    {"read4", has_avx2, 0, nullptr, read_memory<4>},
    {"read8", has_avx2, 0, nullptr, read_memory<8>},
};

}  // namespace

extern "C" {

int peaks() { return static_cast<int>(std::size(kPeaks)); }
const char* peak_name(int peak) { return kPeaks[peak].name; }
int peak_here(int peak) { return kPeaks[peak].here(); }
double peak_operations(int peak) { return kPeaks[peak].operations; }

// Seconds from the first start to the last end. Each thread does `rounds`, or reads `bytes` of its own: memory has threads * bytes.
double peak_seconds(int peak, int threads, int64_t rounds, const char* memory, int64_t bytes) {
  std::atomic<int> waiting{threads};
  std::vector<Clock::time_point> starts(static_cast<size_t>(threads)), ends = starts;
  const auto work = [&](int t) {
    waiting.fetch_sub(1);
    while (waiting.load() > 0) std::this_thread::yield();
    starts[static_cast<size_t>(t)] = Clock::now();
    if (kPeaks[peak].compute)
      kPeaks[peak].compute(rounds);
    else
      kPeaks[peak].read(memory + t * bytes, bytes);
    ends[static_cast<size_t>(t)] = Clock::now();
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work, t);
  work(0);
  for (std::thread& other : others) other.join();
  const auto first = *std::min_element(starts.begin(), starts.end()), last = *std::max_element(ends.begin(), ends.end());
  return std::chrono::duration<double>(last - first).count();
}

}  // extern "C"
