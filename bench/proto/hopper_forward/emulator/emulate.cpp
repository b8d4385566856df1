// Runs forward_kernel block by block and compares with a plain computation. See emulate.py.
#include "cuda_stubs.hpp"

#include "kernel.cuh"
#include "tuned.hpp"

#include <random>
#include <string>

static std::mt19937 bits(7);
static float normal() { return std::normal_distribution<float>()(bits); }

template <class T>
void run(const Params& p, int grid) {
  const int threads = T::kThreads;
  must(sizeof(SharedStorage<T>) <= sizeof(raw), "shared memory");
  for (int block = 0; block < grid; ++block) {
    std::memset(raw, 0xff, sizeof(raw));  // NaN
    ptx::barriers.clear();
    for (auto& n : ptx::named) n = {};
    for (auto& w : warps) w = {};
    block_arrived = 0, block_threads = threads;
    blockIdx.x = block, gridDim.x = grid;
    static const Params* params;
    params = &p;
    fibers.resize(threads);
    for (int t = 0; t < threads; ++t) {
      Fiber& f = fibers[t];
      f.done = false;
      f.stack.resize(256 << 10);
      getcontext(&f.context);
      f.context.uc_stack = {f.stack.data(), 0, f.stack.size()};
      f.context.uc_link = &scheduler;
      makecontext(&f.context, +[] {
        forward_kernel<T>(*params);
        fibers[running].done = true;
      }, 0);
    }
    int left = threads;
    for (long round = 0; left > 0; ++round) {
      must(round < 400000, "a block that comes to an end (deadlock)");
      left = 0;
      for (int t = 0; t < threads; ++t) {
        if (fibers[t].done) continue;
        running = t, threadIdx.x = t;
        swapcontext(&scheduler, &fibers[t].context);
        left += !fibers[t].done;
      }
    }
  }
}

struct Case {
  std::string name;
  int batch = 1, heads = 2, group = 1, sq = 100, sk = 100;
  bool causal = false, band = false, scores = false, top_left = false, sinks = false;
  int left = -1, right = -1;
  std::vector<int> lengths_q{}, lengths_k{};  // packed
  float softcap = 0;
  bool bias = false, mask = false, segments = false, cliffs = false;
  int document = 70;
  bool blocks = false;
};

template <class T>
void check(const Case& c) {
  using Element = typename T::Element;
  constexpr int D = T::D, Dv = T::Dv;
  const bool packed = !c.lengths_q.empty();
  const int batch = packed ? 1 : c.batch, heads = c.heads, heads_kv = heads / c.group;
  std::vector<int> cu_q{0}, cu_k{0};
  for (int n : c.lengths_q) cu_q.push_back(cu_q.back() + n);
  for (int n : c.lengths_k) cu_k.push_back(cu_k.back() + n);
  const int sq = packed ? cu_q.back() : c.sq, sk = packed ? cu_k.back() : c.sk;
  auto make = [&](int rows, int h, int d) {
    std::vector<uint16_t> x(size_t(batch) * rows * h * d);
    for (auto& e : x) e = from_float<Element>(normal());
    return x;
  };
  auto q = make(sq, heads, D), k = make(sk, heads_kv, D), v = make(sk, heads_kv, Dv);
  if (c.cliffs) {
    for (int b = 0; b < batch; ++b)
      for (int i = 0; i < sq; ++i)
        for (int h = 0; h < heads; ++h) q[((size_t(b) * sq + i) * heads + h) * D] = from_float<Element>(std::sqrt(float(D)));
    for (int b = 0; b < batch; ++b)
      for (int j = 0; j < sk; ++j)
        for (int h = 0; h < heads_kv; ++h) k[((size_t(b) * sk + j) * heads_kv + h) * D] = from_float<Element>(float(j / 64 * 37 % 101 - 50));
  }
  std::vector<uint16_t> out(size_t(batch) * sq * heads * Dv, 0x7fff);
  std::vector<float> lse(size_t(batch) * heads * sq, NAN), sinks(heads);
  for (auto& x : sinks) x = normal();
  const int even = sk + sk % 2;
  std::vector<uint16_t> bias;
  std::vector<uint8_t> mask;
  std::vector<int> ids_q(batch * sq), ids_k(batch * sk);
  if (c.bias) bias = make(sq, heads, even);
  if (c.mask) {
    mask.resize(size_t(batch) * heads * sq * even);
    for (size_t i = 0; i < mask.size(); ++i) {
      const int key = i % even, query = i / even / heads % sq;  // some whole tiles unseen, some seen, else by chance
      mask[i] = c.blocks && key / 150 % 3 == 0 ? 0 : c.blocks && key / 150 % 3 == 1 && query < sq / 2 ? 5 : ::bits() % 2;
    }
  }
  for (int b = 0; b < batch; ++b) {
    for (int i = 0; i < sq; ++i) ids_q[b * sq + i] = i / c.document;
    for (int i = 0; i < sk; ++i) ids_k[b * sk + i] = i < sk - 5 ? i / (c.document + 20) : -1;
  }

  Params p{};
  auto map = [&](std::vector<uint16_t>& x, int rows, int h, int d, int box_rows) {
    CUtensorMap m{};
    const int64_t row = int64_t(h) * d * 2;
    m.base = reinterpret_cast<char*>(x.data());
    const int64_t far = kFar, dims[5] = {d, packed ? far : rows, h, packed ? far + 1 : batch, packed ? rows + 1 : 1};
    const int64_t strides[4] = {row, d * 2, packed ? (int64_t(1) << 35) - row : rows * row, row};
    std::copy(dims, dims + 5, m.dims), std::copy(strides, strides + 4, m.strides);
    m.box_rows = box_rows;
    m.low = reinterpret_cast<char*>(x.data()), m.high = m.low + 2 * x.size();
    return m;
  };
  p.q = map(q, sq, heads, D, T::kTileM), p.k = map(k, sk, heads_kv, D, T::kTileN), p.v = map(v, sk, heads_kv, Dv, T::kTileN);
  p.out_map = map(out, sq, heads, Dv, 64);
  p.out = out.data(), p.lse = lse.data();
  p.out_strides = {packed ? 0 : int64_t(sq) * heads * Dv, int64_t(heads) * Dv, Dv};
  p.lse_batch = packed ? 0 : int64_t(heads) * sq, p.lse_head = sq;
  p.seqlen_q = sq, p.seqlen_k = sk, p.group = c.group;
  const float scale = 1 / std::sqrt(float(D));
  p.scale_log2 = scale * 1.4426950408889634f;
  unsigned counter = 0;
  p.counter = &counter;
  if (packed) p.cu_seqlens_q = cu_q.data(), p.cu_seqlens_k = cu_k.data(), p.sequences = cu_q.size() - 1;
  p.window_left = c.left < 0 ? Band::kUnlimited : c.left;
  p.window_right = c.causal ? 0 : c.right < 0 ? Band::kUnlimited : c.right;
  p.bottom_right = !c.top_left;
  if (c.sinks) p.sinks = sinks.data();
  int m_tiles = (sq + T::kTileM - 1) / T::kTileM + (packed ? cu_q.size() - 1 : 0);
  p.order = {m_tiles, heads, batch, 2, c.causal};
  std::vector<int4> tiles;
  if constexpr (T::kScores || T::kBias) {
    p.scores.scale = scale, p.scale_log2 = 1.4426950408889634f, p.scores.softcap = c.softcap;
    const int64_t strides[3] = {int64_t(sq) * heads * even, even, int64_t(heads) * even};  // as make() lays bias out
    if (c.bias) p.scores.bias = bias.data(), p.scores.bias_batch = strides[0], p.scores.bias_head = strides[1], p.scores.bias_row = strides[2];
    if (c.mask) p.scores.mask = mask.data(), p.scores.mask_batch = strides[0], p.scores.mask_head = strides[1], p.scores.mask_row = strides[2];
    if (T::kBias) {
      CUtensorMap& m = p.bias;
      const int64_t dims[5] = {sk, sq, heads, batch, 1}, bytes[4] = {strides[2] * 2, strides[1] * 2, strides[0] * 2, 16};
      std::copy(dims, dims + 5, m.dims), std::copy(bytes, bytes + 4, m.strides);
      m.base = m.low = reinterpret_cast<char*>(bias.data()), m.high = m.low + 2 * bias.size();
      m.box_rows = T::kTileM, m.box_columns = T::kBiasColumns;
      p.bias_heads = p.bias_batches = 1;
      p.order.sections = true, p.order.batches_fastest = batch > 1;
    }
  }
  if constexpr (T::kSegments) {
    if (c.segments) {
      auto range = [&](const std::vector<int>& ids, int b, int length, int from, int rows) {
        auto [low, high] = std::minmax_element(ids.begin() + b * length + from, ids.begin() + b * length + min(length, from + rows));
        return int2{*low, *high};
      };
      const int count_k = (sk + T::kTileN - 1) / T::kTileN;
      for (int b = 0; b < batch; ++b)
        for (int m = 0; m < m_tiles; ++m) {
          const int2 y = range(ids_q, b, sq, m * T::kTileM, T::kTileM);
          int4 t{count_k, 0, count_k, count_k};
          bool open = false;
          for (int j = 0; j < count_k; ++j) {
            const int2 x = range(ids_k, b, sk, j * T::kTileN, T::kTileN);
            if (x.x <= y.y && x.y >= y.x && x.y >= 0 && y.y >= 0) t.x = min(t.x, j), t.y = j + 1;
            const bool clean = x.x == x.y && y.x == y.y && x.x == y.x && x.x >= 0;
            if (clean && t.z == count_k) t.z = j, open = true;
            if (!clean && open) t.w = min(t.w, j);
          }
          if (!open) t.w = t.z;
          tiles.push_back(t);
        }
      p.segments.q = ids_q.data(), p.segments.k = ids_k.data(), p.ranges = {tiles.data(), 1, 0};
    }
  }
  if constexpr (T::kKind == Kind::kCap) p.cap = cap_params(scale / c.softcap), p.scale_log2 = c.softcap * 1.4426950408889634f;
  std::vector<uint32_t> bits;
  const int words = (sk + 127) / 128 * 4;
  if constexpr (T::kMask) {
    bits.assign(size_t(batch) * heads * sq * words + 4, 0);
    auto* const aligned = bits.data() + (4 - reinterpret_cast<uintptr_t>(bits.data()) / 4 % 4) % 4;
    auto seen = [&](int b, int h, int i, int j) { return mask[((size_t(b) * sq + i) * heads + h) * even + j] != 0; };
    for (int b = 0; b < batch; ++b)
      for (int h = 0; h < heads; ++h)
        for (int i = 0; i < sq; ++i)
          for (int j = 0; j < sk; ++j) aligned[((size_t(b) * heads + h) * sq + i) * words + j / 32] |= uint32_t(seen(b, h, i, j)) << j % 32;
    const int count_k = (sk + T::kTileN - 1) / T::kTileN;
    for (int b = 0; b < batch; ++b)
      for (int h = 0; h < heads; ++h)
        for (int m = 0; m < m_tiles; ++m) {
          int4 t{count_k, 0, count_k, count_k};
          bool open = false;
          for (int j = 0; j < count_k; ++j) {
            bool some = false, all = (j + 1) * T::kTileN <= sk;
            for (int i = m * T::kTileM; i < min(sq, (m + 1) * T::kTileM); ++i)
              for (int k = j * T::kTileN; k < min(sk, (j + 1) * T::kTileN); ++k) some |= seen(b, h, i, k), all &= seen(b, h, i, k);
            if (some) t.x = min(t.x, j), t.y = j + 1;
            if (all && t.z == count_k) t.z = j, open = true;
            if (!all && open) t.w = min(t.w, j);
          }
          if (!open) t.w = t.z;
          tiles.push_back(t);
        }
    p.mask = {aligned, int64_t(heads) * sq * words, int64_t(sq) * words, words};
    p.ranges = {tiles.data(), heads, 1};
  }
  run<T>(p, min(p.order.count(), 3));
  must(counter == 0, "the counter returns to zero");

  double error = 0, norm = 0, lse_error = 0;
  for (int n = 0; n < (packed ? int(cu_q.size()) - 1 : batch); ++n) {
    const int q0 = packed ? cu_q[n] : n * sq, k0 = packed ? cu_k[n] : n * sk;
    const int lq = packed ? cu_q[n + 1] - q0 : sq, lk = packed ? cu_k[n + 1] - k0 : sk;
    const int shift = c.top_left ? 0 : lk - lq, right = c.causal ? 0 : c.right;
    for (int h = 0; h < heads; ++h)
      for (int i = 0; i < lq; ++i) {
        std::vector<double> s(lk, -INFINITY);
        double top = c.sinks ? sinks[h] : -INFINITY;
        for (int j = 0; j < lk; ++j) {
          if (right >= 0 && j > i + shift + right) continue;
          if (c.left >= 0 && j < i + shift - c.left) continue;
          if (c.segments && (ids_q[q0 + i] != ids_k[k0 + j] || ids_q[q0 + i] < 0)) continue;
          const size_t at = ((size_t(n) * sq + i) * heads + h) * even + j;
          if (c.mask && !mask[at]) continue;
          double x = 0;
          for (int d = 0; d < D; ++d)
            x += double(to_float<Element>(q[(size_t(q0 + i) * heads + h) * D + d])) * to_float<Element>(k[(size_t(k0 + j) * heads_kv + h / c.group) * D + d]);
          x *= scale;
          if (c.bias) x += to_float<Element>(bias[at]);
          if (c.softcap > 0) x = c.softcap * std::tanh(x / c.softcap);
          s[j] = x, top = max(top, x);
        }
        double sum = c.sinks ? std::exp(sinks[h] - top) : 0;
        std::vector<double> o(Dv, 0.);
        for (int j = 0; j < lk; ++j) {
          if (s[j] == -INFINITY) continue;
          const double e = std::exp(s[j] - top);
          sum += e;
          for (int d = 0; d < Dv; ++d) o[d] += e * to_float<Element>(v[(size_t(k0 + j) * heads_kv + h / c.group) * Dv + d]);
        }
        for (int d = 0; d < Dv; ++d) {
          const double want = sum > 0 ? o[d] / sum : 0, got = to_float<Element>(out[(size_t(q0 + i) * heads + h) * Dv + d]);
          must(got == got, "an output that was written");
          error += (got - want) * (got - want), norm += want * want;
        }
        const float got = lse[packed ? size_t(h) * sq + q0 + i : (size_t(n) * heads + h) * sq + i];
        if (sum > 0) lse_error = max(lse_error, std::fabs(got - (top + std::log(sum))));
        else must(got == -INFINITY, "lse of a row without keys");
        must(got == got, "an lse that was written");
      }
  }
  const double relative = norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
  std::printf("  %-40s out %.2e lse %.2e%s\n", c.name.c_str(), relative, lse_error, relative < 6e-3 && lse_error < 2e-3 ? "" : "   WRONG");
  std::fflush(stdout);
  if (!(relative < 6e-3 && lse_error < 2e-3)) std::exit(1);
}

template <Kind kKind, Length kLength = Length::kMiddle>
using Kernel = Traits<ELEMENT, HEAD_DIM, HEAD_DIM_V, kKind, kKind == Kind::kScores ? scored_tuning() : kKind == Kind::kBias ? bias_tuning() : kKind == Kind::kMask ? mask_tuning() : edited(kKind != Kind::kFull, kLength)>;

int main() {
  using Full = Kernel<Kind::kFull>;
  using Causal = Kernel<Kind::kCausal>;
  using Banded = Kernel<Kind::kBand>;
  using Scored = Kernel<Kind::kScores>;
  using Segmented = Kernel<Kind::kSegments>;
  using Biased = Kernel<Kind::kBias>;
  using Masked = Kernel<Kind::kMask>;
  check<Full>({.name = "full", .batch = 2, .group = 2, .sq = 150, .sk = 700});
  check<Full>({.name = "full, one key", .sq = 300, .sk = 1});
  check<Full>({.name = "full, cliffs", .heads = 1, .sq = 70, .sk = 900, .cliffs = true});
  check<Kernel<Kind::kFull, Length::kShort>>({.name = "full, short", .batch = 3, .sq = 260, .sk = 300});
  check<Causal>({.name = "causal", .batch = 2, .group = 2, .sq = 500, .sk = 650, .causal = true});
  check<Causal>({.name = "causal, more queries than keys", .sq = 400, .sk = 130, .causal = true});
  check<Causal>({.name = "causal, cliffs", .heads = 1, .sq = 200, .sk = 900, .causal = true, .cliffs = true});
  check<Kernel<Kind::kCausal, Length::kShort>>({.name = "causal, short", .batch = 3, .sq = 390, .sk = 390, .causal = true});
  check<Kernel<Kind::kCausal, Length::kLong>>({.name = "causal, long", .batch = 2, .group = 2, .sq = 500, .sk = 650, .causal = true});
  check<Banded>({.name = "window", .sq = 300, .sk = 777, .band = true, .left = 100, .right = 37});
  check<Banded>({.name = "window, cliffs", .heads = 1, .sq = 300, .sk = 1200, .band = true, .left = 700, .right = 300, .cliffs = true});
  check<Banded>({.name = "causal top left", .sq = 200, .sk = 300, .causal = true, .band = true, .top_left = true});
  check<Banded>({.name = "causal top left, few keys", .sq = 400, .sk = 100, .causal = true, .band = true, .top_left = true});
  check<Banded>({.name = "window, rows without keys, sinks", .sq = 300, .sk = 90, .band = true, .top_left = true, .sinks = true, .left = 10, .right = 0});
  for (bool causal : {false, true})
    check<Banded>({.name = causal ? "packed causal" : "packed", .heads = 4, .group = 2, .causal = causal, .band = true, .lengths_q = {100, 1, 0, 213, 128}, .lengths_k = {100, 7, 5, 413, 300}});
  check<Banded>({.name = "packed, without keys", .band = true, .sinks = true, .left = 33, .lengths_q = {70, 64, 0}, .lengths_k = {0, 200, 3}});
  check<Scored>({.name = "soft cap", .sq = 130, .sk = 300, .scores = true, .softcap = 1.5f});
  check<Scored>({.name = "bias causal", .batch = 2, .sq = 150, .sk = 301, .causal = true, .scores = true, .bias = true});
  check<Scored>({.name = "mask, cap, window", .sq = 150, .sk = 333, .scores = true, .left = 150, .right = 40, .softcap = 3.f, .mask = true});
  check<Scored>({.name = "segments", .batch = 2, .sq = 300, .sk = 420, .scores = true, .segments = true});
  check<Scored>({.name = "segments causal bias mask", .sq = 300, .sk = 420, .causal = true, .scores = true, .bias = true, .mask = true, .segments = true});
  check<Segmented>({.name = "only segments", .batch = 2, .sq = 300, .sk = 420, .segments = true});
  check<Segmented>({.name = "only segments, long", .heads = 1, .sq = 1200, .sk = 1500, .segments = true, .document = 500});
  check<Segmented>({.name = "only segments, long causal", .sq = 900, .sk = 1000, .causal = true, .segments = true, .document = 330});
  check<Segmented>({.name = "only segments, window, sinks", .sq = 500, .sk = 700, .sinks = true, .left = 200, .right = 30, .segments = true, .document = 300});
  check<Biased>({.name = "only bias", .batch = 2, .group = 2, .sq = 300, .sk = 520, .bias = true});
  check<Biased>({.name = "only bias, causal", .batch = 3, .sq = 333, .sk = 447, .causal = true, .bias = true});
  check<Biased>({.name = "only bias, window, sinks", .sq = 300, .sk = 700, .top_left = true, .sinks = true, .left = 150, .right = 40, .bias = true});
  check<Masked>({.name = "only mask", .batch = 2, .sq = 300, .sk = 421, .mask = true});
  check<Masked>({.name = "only mask, blocks", .sq = 500, .sk = 1100, .mask = true, .blocks = true});
  check<Masked>({.name = "only mask, blocks, causal", .sq = 600, .sk = 900, .causal = true, .mask = true, .blocks = true});
  using Capped = Kernel<Kind::kCap>;
  check<Capped>({.name = "only soft cap, all small", .batch = 2, .sq = 300, .sk = 421, .softcap = 20.f});
  check<Capped>({.name = "only soft cap, causal, some large", .sq = 400, .sk = 500, .causal = true, .softcap = 4.f});
  check<Capped>({.name = "only soft cap, window, all large", .sq = 300, .sk = 500, .left = 100, .right = 50, .softcap = 0.4f});
  std::printf("all right\n");
}
