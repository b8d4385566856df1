// Masks, tile orders and score changes checked on the CPU, thread by thread, against their plain definitions.
//   g++ -std=c++20 -O2 -Wall test_host.cpp -o test_host && ./test_host
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#define __device__
#define __forceinline__ inline
using std::max;
using std::min;
struct int2 {
  int x, y;
};
struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct int4 {
  int x, y, z, w;
};
static struct {
  int x;
} threadIdx;
inline bool __any_sync(unsigned, bool x) { return x; }
template <class T>
T __ldg(const T* p) {
  return *p;
}
namespace ptx {
inline float exp2_approx(float x) { return std::exp2(x); }
inline float reciprocal_approx(float x) { return 1 / x; }
template <class>
void unpack(uint32_t two, float& low, float& high) {  // bf16
  uint32_t a = two << 16, b = two & 0xffff0000u;
  std::memcpy(&low, &a, 4), std::memcpy(&high, &b, 4);
}
}  // namespace ptx

#include "mask.cuh"
#include "schedule.cuh"
#include "scores.cuh"

static std::mt19937 random_bits(1);
static int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }
static long checks = 0;
static void expect(bool good, const char* what) {
  ++checks;
  if (!good) std::printf("WRONG %s\n", what), std::exit(1);
}

// Every key tile of every warpgroup as kernel.cuh walks them: what is left after the masks is what is seen.
template <int N, int kTileM>
void check_band(int seqlen_q, int seqlen_k, const Band& band, bool causal_kind, bool band_kind) {
  for (int m = 0; m * kTileM < seqlen_q; ++m) {
    TileRange keys = band.keys<N>(m * kTileM, (m + 1) * kTileM);
    if (!band_kind) keys.begin = 0;
    expect(0 <= keys.begin && keys.begin < keys.end, "a tile range is never empty");
    for (int first_row = m * kTileM; first_row < (m + 1) * kTileM; first_row += 64) {
      const TileRange full = band.full<N>(first_row, first_row + 64);
      const int right = max(keys.begin, full.end), left = band_kind ? max(keys.begin, full.begin) : keys.begin;
      std::vector<char> seen(64 * size_t(seqlen_k + 2 * N), 0);
      int j = keys.end - 1;
      bool first = true;
      auto visit = [&](bool masked) {
        for (int t = 0; t < 128; ++t) {
          threadIdx.x = t;
          const int row = t / 32 * 16 + t % 32 / 4;
          float s[N / 2];
          std::fill(s, s + N / 2, 1.f);
          if (masked) {
            if (causal_kind) mask_scores<N, false, true, false>(s, band, first_row + row, j * N);
            else if (band_kind) mask_scores<N, true, true, true>(s, band, first_row + row, j * N);
            else mask_scores<N, true, false, false>(s, band, first_row + row, j * N);
          }
          for (int i = 0; i < N / 8; ++i)
            for (int r = 0; r < 2; ++r)
              for (int e = 0; e < 2; ++e)
                if (s[4 * i + 2 * r + e] == 1.f) ++seen[(row + 8 * r) * size_t(seqlen_k + 2 * N) + j * N + 8 * i + 2 * (t % 4) + e];
        }
      };
      visit(band_kind || j >= full.end);  // first_softmax
      first = false;
      while (j > right) --j, visit(true);
      while (j > left) --j, visit(false);
      while (j > keys.begin) --j, visit(true);
      (void)first;
      for (int row = 0; row < 64 && first_row + row < seqlen_q; ++row)
        for (int k = 0; k < seqlen_k + N; ++k) {
          const int q = first_row + row;
          const bool want = k < seqlen_k && k <= q + band.high && k >= q + band.low;
          if (seen[row * size_t(seqlen_k + 2 * N) + k] != want) {
            std::printf("N %d M %d q %d k %d of %d x %d, band %d..%d\n", N, kTileM, q, k, seqlen_q, seqlen_k, band.low, band.high);
            expect(false, "the keys seen");
          }
          ++checks;
        }
    }
  }
}

template <int N, int kTileM>
void check_bands() {
  constexpr int kNone = Band::kUnlimited;
  for (int i = 0; i < 60; ++i) {
    const int sq = uniform(1, 500), sk = uniform(i % 10 == 0 ? 0 : 1, 500);
    check_band<N, kTileM>(sq, sk, {sk, -kNone, kNone}, false, false);
    if (sk > 0) check_band<N, kTileM>(sq, sk, {sk, -kNone, sk - sq}, true, false);
    const int shift = uniform(0, 1) ? sk - sq : 0;
    const int left = uniform(0, 3) ? uniform(0, 300) : -1, right = uniform(0, 3) ? uniform(0, 300) : -1;
    check_band<N, kTileM>(sq, sk, {sk, left < 0 ? -kNone : shift - left, right < 0 ? kNone : shift + right}, false, true);
  }
}

void check_orders() {
  for (int n = 0; n < 300; ++n) {
    const int m_tiles = uniform(1, 40), group = uniform(1, 4), heads = group * uniform(1, 6), batches = uniform(1, 9);
    const int section = section_size(heads * batches, group, m_tiles, int64_t(uniform(1, 64)) << 20, 132);
    expect(section >= 1 && section <= heads * batches, "a section's size");
    const TileOrder order{m_tiles, heads, batches, section, n % 2 == 0};
    std::set<std::tuple<int, int, int>> all;
    for (int i = 0; i < order.count(); ++i) {
      const Tile t = order[i];
      expect(t.m >= 0 && t.m < m_tiles && t.head >= 0 && t.head < heads && t.batch >= 0 && t.batch < batches, "a tile");
      all.insert({t.m, t.head, t.batch});
    }
    expect(int(all.size()) == order.count(), "each tile once");
  }
  for (int n = 0; n < 300; ++n) {  // packed, by several blocks that each ask in rising order
    const int sequences = uniform(1, 12), heads = uniform(1, 5), tile_m = 128, blocks = uniform(1, 7);
    std::vector<int> cu{0};
    for (int i = 0; i < sequences; ++i) cu.push_back(cu.back() + (uniform(0, 3) ? uniform(1, 600) : 0));
    const int count = ((cu.back() + tile_m - 1) / tile_m + sequences) * heads;
    std::vector<PackedOrder> of(blocks);
    std::set<std::tuple<int, int, int>> all;
    size_t found = 0;
    for (int i = 0; i < count; ++i) {
      Tile t;
      if (!of[uniform(0, blocks - 1)].find(cu.data(), sequences, heads, tile_m, i, t)) continue;
      ++found;
      all.insert({t.m, t.head, t.batch});
      expect(t.m * tile_m < cu[t.batch + 1] - cu[t.batch], "a packed tile lies in its sequence");
    }
    size_t want = 0;
    for (int i = 0; i < sequences; ++i) want += (cu[i + 1] - cu[i] + tile_m - 1) / tile_m * heads;
    expect(found == want && all.size() == want, "each packed tile once");
    for (int i = 0; i < sequences; ++i) {
      const int length = cu[i + 1] - cu[i];
      const RowOrigin o = packed_origin(cu[i], length);
      for (int r = 0; r < length + 3; ++r) {
        expect(int64_t(o.first) + r + o.x - o.back == cu[i] + r, "a packed row's address");
        expect((int64_t(o.first) + r < kFar) == (r < length), "a packed sequence's end");
      }
      expect(o.first >= 0 && o.x >= 0 && o.x <= cu.back(), "coordinates within the map");
    }
  }
}

static float bf16(uint16_t x) {
  uint32_t w = uint32_t(x) << 16;
  float f;
  std::memcpy(&f, &w, 4);
  return f;
}

template <int N>
void check_scores() {
  for (int n = 0; n < 40; ++n) {
    const int batches = 2, heads = 3, sq = uniform(1, 200), sk = uniform(1, 300), even = sk + sk % 2;
    const bool bias = n & 1, cap = n & 2, mask = n & 4, segments = n & 8;
    std::vector<uint16_t> bias_data(size_t(batches) * heads * sq * even);
    for (auto& x : bias_data) x = uint16_t(uniform(0, 1) << 15 | uniform(0x3c00, 0x4100));
    std::vector<uint8_t> mask_data(bias_data.size());
    for (auto& x : mask_data) x = uniform(0, 1) * uniform(1, 255);
    std::vector<int> ids_q(batches * sq), ids_k(batches * sk);
    const bool sorted = uniform(0, 1);
    for (int b = 0; b < batches; ++b) {
      for (int i = 0; i < sq; ++i) ids_q[b * sq + i] = sorted ? i / 90 : uniform(-1, 2);
      for (int i = 0; i < sk; ++i) ids_k[b * sk + i] = sorted ? i / 140 : uniform(-1, 2);
    }
    ScoreParams p{};
    p.scale = 0.37f;
    p.softcap = cap ? 1.5f : 0.f;
    const int64_t strides[3] = {int64_t(heads) * sq * even, int64_t(sq) * even, even};
    if (bias) p.bias = bias_data.data(), p.bias_batch = strides[0], p.bias_head = strides[1], p.bias_row = strides[2];
    if (mask) p.mask = mask_data.data(), p.mask_batch = strides[0], p.mask_head = strides[1], p.mask_row = strides[2];
    const SegmentParams ids{ids_q.data(), ids_k.data()};
    for (int b = 0; b < batches; ++b)
      for (int h = 0; h < heads; ++h)
        for (int first_row = 0; first_row < (sq + 127) / 128 * 128; first_row += 64)
          for (int t = 0; t < 128; ++t) {
            threadIdx.x = t;
            const int row = t / 32 * 16 + t % 32 / 4;
            Scores<uint16_t, N> scores(p);
            scores.begin(b, h, first_row, row, sq, sk);
            for (int j = (sk + N - 1) / N - 1; j >= 0; --j) {
              scores.prefetch(j);
              float s[N / 2], raw[N / 2];
              for (int i = 0; i < N / 2; ++i) s[i] = raw[i] = 0.01f * (i % 37) - 0.2f;
              scores.apply(s, j);
              if (segments) mask_segments<N>(s, ids, b, first_row + row, sq, sk, j);
              for (int i = 0; i < N / 8; ++i)
                for (int r = 0; r < 2; ++r)
                  for (int e = 0; e < 2; ++e) {
                    const int q = first_row + row + 8 * r, k = j * N + 8 * i + 2 * (t % 4) + e;
                    if (q >= sq || k >= sk) continue;
                    const size_t at = b * strides[0] + h * strides[1] + q * strides[2] + k;
                    float want = raw[4 * i + 2 * r + e] * p.scale + (bias ? bf16(bias_data[at]) : 0.f);
                    if (cap) want = p.softcap * std::tanh(want / p.softcap);
                    if (mask && !mask_data[at]) want = -INFINITY;
                    if (segments && (ids_q[b * sq + q] != ids_k[b * sk + k] || ids_q[b * sq + q] < 0)) want = -INFINITY;
                    const float got = s[4 * i + 2 * r + e];
                    expect(want == -INFINITY ? got == want : std::fabs(got - want) < 1e-5f, "a score");
                  }
            }
          }
  }
}

void check_cap() {
  for (int n = 0; n < 200000; ++n) {
    const float cap = std::exp(uniform(-20, 80) * 0.1f), scale = 0.1f;
    const CapParams p = cap_params(scale / cap);
    float s[8], want[8];
    for (int i = 0; i < 8; ++i) s[i] = cap / scale * uniform(-1000, 1000) * (n % 2 ? 0.00074f : 0.003f), want[i] = std::tanh(s[i] * scale / cap);
    cap_scores(s, p);
    // the polynomial's 2e-7 and ten roundings
    for (int i = 0; i < 8; ++i) expect(std::fabs(s[i] - want[i]) < 8e-7f, "a capped score");
  }
}

int main() {
  check_cap();
  check_bands<128, 128>();
  check_bands<160, 128>();
  check_bands<80, 128>();
  check_bands<96, 128>();
  check_bands<128, 192>();
  check_orders();
  check_scores<96>();
  check_scores<128>();
  std::printf("%ld checks, all right\n", checks);
}
