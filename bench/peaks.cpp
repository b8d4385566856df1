// The ceilings of this machine, called by roofline.py: seconds for `n` rounds of independent multiply-adds in registers, and for
// reading `bytes` of memory once. One thread.
#include <immintrin.h>
#include <time.h>

#include <cstddef>
#include <cstdint>

namespace {

// Of this thread: a ceiling is what the machine does while it works for us.
double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

volatile float sink;

constexpr int kChains = 12;  // latency 4, at most two a cycle

}  // namespace

extern "C" {

__attribute__((target("avx512f"))) double fma_avx512(int64_t n) {
  __m512 c[kChains], a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  for (__m512& x : c) x = a;
  asm volatile("" : "+v"(a), "+v"(b));
  const double start = now();
  for (int64_t i = 0; i < n; ++i)
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) c[k] = _mm512_fmadd_ps(a, b, c[k]);
  const double seconds = now() - start;
  for (const __m512& x : c) sink = x[0];
  return seconds;
}

__attribute__((target("avx2,fma"))) double fma_avx2(int64_t n) {
  __m256 c[kChains], a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
  for (__m256& x : c) x = a;
  asm volatile("" : "+x"(a), "+x"(b));
  const double start = now();
  for (int64_t i = 0; i < n; ++i)
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) c[k] = _mm256_fmadd_ps(a, b, c[k]);
  const double seconds = now() - start;
  for (const __m256& x : c) sink = x[0];
  return seconds;
}

int fma_chains() { return kChains; }

// Four streams, as far apart as they can be.
__attribute__((target("avx2"))) double read_memory(const char* memory, int64_t bytes) {
  const int64_t quarter = bytes / 4 / 64 * 64;
  __m256i sum[4] = {};
  const double start = now();
  for (int64_t i = 0; i < quarter; i += 64)
    for (int s = 0; s < 4; ++s) {
      const __m256i* p = reinterpret_cast<const __m256i*>(memory + s * quarter + i);
      sum[s] = _mm256_add_epi32(sum[s], _mm256_add_epi32(_mm256_loadu_si256(p), _mm256_loadu_si256(p + 1)));
    }
  const double seconds = now() - start;
  sink = static_cast<float>(_mm256_extract_epi32(_mm256_add_epi32(_mm256_add_epi32(sum[0], sum[1]), _mm256_add_epi32(sum[2], sum[3])), 0));
  return seconds;
}

}  // extern "C"
