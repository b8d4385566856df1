// Every CPU kernel against a plain double loop over random problems that mix all options, with odd strides, odd addresses and
// poison around every array. Compared: the pattern of NaN and infinities first, then errors against a bound that follows from
// the accumulator's epsilon, then the bits for another number of threads, then that nothing beside the outputs was written.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "core/kernel_table.hpp"
#include "cpu/features.hpp"
#include "cpu/scalars.hpp"

using namespace attile;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
int failures = 0, refused = 0;

struct Random {
  uint64_t state;
  uint32_t bits() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
  int64_t below(int64_t n) { return bits() % n; }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool chance(double p) { return bits() < p * 0x1p31; }
  double uniform() { return bits() * 0x1p-30 - 1; }
  double normal() { return uniform() + uniform() + uniform(); }
};

// An array in a buffer of its own: strides with gaps, an address that is no multiple of the element, poison everywhere else.
struct Array {
  std::vector<unsigned char> memory;
  View view;

  Array() = default;
  Array(Random& random, DType dtype, std::initializer_list<int64_t> shape) {
    view.dtype = dtype;
    std::copy(shape.begin(), shape.end(), view.shape);
    int64_t size = 1;
    for (int d = 3; d >= 0; --d) {
      view.stride[d] = size;
      size *= std::max<int64_t>(1, view.shape[d]) + (d < 3 && random.chance(0.5) ? 0 : 1);
    }
    view.stride[3] = 1;
    const int64_t lead = random.between(0, 9);
    memory.assign(size * size_of(dtype) + 16, 0xFF);  // all bits set: a NaN in every floating type
    view.data = reinterpret_cast<char*>(memory.data()) + lead;
  }
  double get(int64_t a, int64_t b, int64_t c, int64_t d) const { return read_floating(view.dtype, view.at(a, b, c, d)); }
  template <class F>
  void fill(F f) {
    for (int64_t a = 0; a < view.shape[0]; ++a)
      for (int64_t b = 0; b < view.shape[1]; ++b)
        for (int64_t c = 0; c < view.shape[2]; ++c)
          for (int64_t d = 0; d < view.shape[3]; ++d) write_floating(view.dtype, view.at(a, b, c, d), f(a, b, c, d));
  }
};

struct Case {
  std::string text;
  AttentionProblem p;
  Array q, k, v, out, lse, bias, mask, sinks, q_ids, k_ids;
  std::vector<int32_t> cu_q;
  std::vector<int64_t> cu_k;
  Config config;
};

void fill_ids(Random& random, Array& ids) {
  for (int64_t b = 0; b < ids.view.shape[2]; ++b)
    for (int64_t t = 0; t < ids.view.shape[3]; ++t) {
      const int64_t id = random.between(-1, 2);
      std::memcpy(ids.view.at(0, 0, b, t), &id, size_of(ids.view.dtype));  // little endian
    }
}

std::unique_ptr<Case> make_case(uint64_t seed) {
  auto c = std::make_unique<Case>();
  Random random{seed * 7919 + 17};
  for (int i = 0; i < 4; ++i) random.bits();
  AttentionProblem& p = c->p;
  const DType dtypes[] = {DType::f32, DType::f64, DType::f16, DType::bf16};
  p.dtype = dtypes[random.below(4)];
  const bool exact = random.chance(0.25);  // scores without rounding error, for logits_dtype
  const bool large = random.chance(0.15);
  p.batch = random.between(1, 3);
  p.heads_k = random.between(1, 2);
  p.group = random.chance(0.5) ? 1 : random.between(2, 5);
  p.heads_q = p.heads_k * p.group;
  p.head_dim = random.chance(0.3) ? 16 * random.between(1, 5) : random.between(1, 70);
  p.head_dim_v = random.chance(0.3) ? 16 * random.between(1, 5) : random.between(1, 50);
  const int64_t seqlen_q = large ? random.between(60, 300) : random.between(0, 40),
                seqlen_k = large ? random.between(90, 400) : random.between(0, 120);
  const bool packed = random.chance(0.25), padded_q = !packed && random.chance(0.3), padded_k = !packed && random.chance(0.3);

  // Sequences: lengths, then totals with rows to spare.
  const auto lengths = [&](auto& cu, int64_t longest) {
    cu.push_back(0);
    for (int64_t b = 0; b < p.batch; ++b) cu.push_back(cu.back() + (random.chance(0.2) ? 0 : random.between(0, longest)));
  };
  p.q_seqs.batch = p.k_seqs.batch = p.batch;
  p.q_seqs.rows = p.q_seqs.longest = seqlen_q;
  p.k_seqs.rows = p.k_seqs.longest = seqlen_k;
  if (packed || padded_q) {
    lengths(c->cu_q, seqlen_q);
    p.q_seqs.cu = {reinterpret_cast<const char*>(c->cu_q.data()), DType::i32, p.batch + 1, 1};
    p.options |= kVarlenQ;
  }
  if (packed || padded_k) {
    lengths(c->cu_k, seqlen_k);
    p.k_seqs.cu = {reinterpret_cast<const char*>(c->cu_k.data()), DType::i64, p.batch + 1, 1};
    p.options |= kVarlenK;
  }
  if (packed) {
    p.q_seqs.packed = p.k_seqs.packed = true;
    p.q_seqs.rows = c->cu_q.back() + random.between(0, 5);
    p.k_seqs.rows = c->cu_k.back() + random.between(0, 5);
  }
  const int64_t view_batch = packed ? 1 : p.batch, tq = p.q_seqs.rows, tk = p.k_seqs.rows;
  c->q = Array(random, p.dtype, {view_batch, tq, p.heads_q, p.head_dim});
  c->k = Array(random, p.dtype, {view_batch, tk, p.heads_k, p.head_dim});
  c->v = Array(random, p.dtype, {view_batch, tk, p.heads_k, p.head_dim_v});
  c->out = Array(random, p.dtype, {view_batch, tq, p.heads_q, p.head_dim_v});
  c->lse = Array(random, accumulator_of(p.dtype), {view_batch, p.heads_q, tq, 1});
  const bool staircase = !exact && random.chance(0.3);  // the maximum rises from tile to tile
  const auto value = [&](int64_t, int64_t t, int64_t, int64_t) {
    if (exact) return random.between(-4, 4) * 0.25;
    return random.normal() * (staircase ? 1 + t * 0.01 : 1);
  };
  // Only what lies inside the sequences; the rest stays poison.
  const auto fill = [&](Array& x, const Sequences& s) {
    for (int64_t b = 0; b < p.batch; ++b)
      for (int64_t t = 0; t < s.length(b); ++t)
        for (int64_t h = 0; h < x.view.shape[2]; ++h)
          for (int64_t d = 0; d < x.view.shape[3]; ++d)
            write_floating(p.dtype, x.view.at(s.batch_index(b), s.first_row(b) + t, h, d), value(b, t, h, d));
  };
  fill(c->q, p.q_seqs);
  fill(c->k, p.k_seqs);
  fill(c->v, p.k_seqs);

  p.softmax_scale = exact ? 0.5 : random.chance(0.1) ? -0.3 : random.chance(0.05) ? 0.0 : 1 / std::sqrt(static_cast<double>(p.head_dim));
  if (random.chance(0.4)) {
    p.causal = true;
    p.options |= kCausal;
  }
  if (random.chance(0.5)) p.alignment = Alignment::bottom_right;
  if (random.chance(0.3)) {
    p.options |= kWindow;
    if (random.chance(0.7)) p.window_left = random.between(0, 50);
    if (random.chance(0.7)) p.window_right = random.between(0, 50);
  }
  const int64_t nq = p.q_seqs.longest, nk = p.k_seqs.longest;
  const auto broadcast = [&](Array& x, DType dtype, int64_t heads) {
    const int64_t full[4] = {p.batch, heads, nq, nk};
    int64_t kept[4];
    for (int d = 0; d < 4; ++d) kept[d] = random.chance(0.4) ? 1 : full[d];
    x = Array(random, dtype, {kept[0], kept[1], kept[2], kept[3]});
    for (int d = 0; d < 4; ++d)
      if (kept[d] == 1) x.view.stride[d] = 0;
  };
  const auto whole = [&](Array& x) {
    View v = x.view;
    const int64_t full[4] = {p.batch, p.heads_q, nq, nk};
    for (int d = 0; d < 4; ++d) v.shape[d] = full[d];
    return v;
  };
  if (random.chance(0.35)) {
    broadcast(c->bias, exact ? p.dtype : dtypes[random.below(4)], p.heads_q);
    c->bias.fill([&](auto...) { return random.chance(0.1) ? -kInf : exact ? random.between(-8, 8) * 0.5 : random.normal(); });
    p.options |= kBias;
  }
  if (random.chance(0.3)) {
    const DType kinds[] = {DType::boolean, DType::i8, DType::u8, DType::i16, DType::i32, DType::i64};
    const DType kind = kinds[random.below(6)];
    broadcast(c->mask, kind, p.heads_q);
    const View& m = c->mask.view;
    for (int64_t a = 0; a < m.shape[0]; ++a)
      for (int64_t h = 0; h < m.shape[1]; ++h)
        for (int64_t i = 0; i < m.shape[2]; ++i)
          for (int64_t j = 0; j < m.shape[3]; ++j) {
            const int64_t bit = random.chance(0.7) ? int64_t{1} << random.below(kind == DType::boolean ? 1 : 8 * size_of(kind)) : 0;
            std::memcpy(m.at(a, h, i, j), &bit, size_of(kind));
          }
    p.options |= kAttentionMask;
  }
  if (random.chance(0.25)) {
    c->q_ids = Array(random, random.chance(0.5) ? DType::i32 : DType::i64, {1, 1, view_batch, tq});
    c->k_ids = Array(random, random.chance(0.5) ? DType::i32 : DType::i64, {1, 1, view_batch, tk});
    fill_ids(random, c->q_ids);
    fill_ids(random, c->k_ids);
    p.options |= kSegmentIds;
  }
  if (random.chance(0.25)) {
    c->sinks = Array(random, dtypes[random.below(4)], {1, 1, p.heads_q, random.between(1, 3)});
    c->sinks.fill([&](auto...) { return random.normal() * 2; });
    p.options |= kSinks;
  }
  if (exact && random.chance(0.7)) {
    p.logits_dtype = random.chance(0.5) ? DType::f16 : DType::bf16;
    p.options |= kLogitsDtype;
  } else if (random.chance(0.25)) {
    p.softcap = random.chance(0.5) ? 1.5 : 30;
    p.options |= kSoftcap;
  }
  if (random.chance(0.2)) {
    p.dropout = {uint64_t{random.bits()} << 32 | random.bits(), static_cast<uint32_t>(0.3 * 0x1p32), 1 / 0.7};
    p.options |= kDropout;
  }
  if (random.chance(0.15)) p.options |= kUnnormalized;

  // NaN in a query, in a key, or in a value that every row sees or none.
  if (!exact && tq > 0 && random.chance(0.15)) write_floating(p.dtype, c->q.view.at(0, random.below(tq), 0, 0), kInf - kInf);
  if (!exact && tk > 0 && random.chance(0.15)) write_floating(p.dtype, c->k.view.at(0, random.below(tk), 0, p.head_dim - 1), kInf - kInf);

  p.q = c->q.view;
  p.k = c->k.view;
  p.v = c->v.view;
  p.out = c->out.view;
  if (random.chance(0.8)) {
    p.lse = c->lse.view;
    p.options |= kLse;
  }
  if (p.has(kBias)) p.bias = whole(c->bias);
  if (p.has(kAttentionMask)) p.attention_mask = whole(c->mask);
  p.q_ids = c->q_ids.view;
  p.k_ids = c->k_ids.view;
  p.sinks = c->sinks.view;
  if (random.chance(0.4)) c->config.block_q = random.between(1, 80);
  if (random.chance(0.4)) c->config.block_k = random.between(1, 140);
  if (random.chance(0.4)) c->config.num_splits = random.between(1, 5);

  c->text = "seed " + std::to_string(seed) + " " + info(p.dtype).name + " B" + std::to_string(p.batch) + " Hq" + std::to_string(p.heads_q) +
            " Hk" + std::to_string(p.heads_k) + " Tq" + std::to_string(seqlen_q) + " Tk" + std::to_string(seqlen_k) + " D" +
            std::to_string(p.head_dim) + " Dv" + std::to_string(p.head_dim_v);
  for (int i = 0; i < int{kOptionCount}; ++i)
    if (p.options >> i & 1) c->text += std::string(", ") + kOptionNames[i];
  return c;
}

double round_to(DType dtype, double x) {
  if (dtype == DType::none || !std::isfinite(x) || x == 0) return x;
  const int digits = dtype == DType::f16 ? 11 : 8, lowest = dtype == DType::f16 ? -24 : -133;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(x) + 1 - digits, lowest));
  return std::nearbyint(x / unit) * unit;
}

struct Expected {
  std::vector<double> out;
  double lse;
  double out_error, lse_error;  // bounds
  double mass;                  // at least the sum of p |v|
};

// One row, as the specification writes it.
Expected expected_row(const Case& c, int64_t b, int64_t h, int64_t i) {
  const AttentionProblem& p = c.p;
  const double epsilon = info(accumulator_of(p.dtype)).epsilon;
  const int64_t qb = p.q_seqs.batch_index(b), qi = p.q_seqs.first_row(b) + i, kb = p.k_seqs.batch_index(b), k0 = p.k_seqs.first_row(b),
                hk = h / p.group;
  const Mask mask = p.mask(b);
  const int64_t keys = p.k_seqs.length(b);
  std::vector<double> s(keys), p_of(keys);
  std::vector<bool> seen(keys);
  double magnitude = 4, top = -kInf;
  for (int64_t j = 0; j < keys; ++j) {
    seen[j] = mask.seen(i, j);
    if (p.has(kAttentionMask)) {
      int64_t word = 0;
      std::memcpy(&word, p.attention_mask.at(b, h, i, j), size_of(p.attention_mask.dtype));
      seen[j] = seen[j] && word != 0;
    }
    if (p.has(kSegmentIds)) {
      const int64_t id = read_index(p.q_ids.dtype, p.q_ids.at(0, 0, qb, qi));
      seen[j] = seen[j] && id >= 0 && id == read_index(p.k_ids.dtype, p.k_ids.at(0, 0, kb, k0 + j));
    }
    double dot = 0, sum = 0;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      const double x = c.q.get(qb, qi, h, d) * c.k.get(kb, k0 + j, hk, d);
      dot += x;
      sum += std::abs(x);
    }
    const double bias = p.has(kBias) ? read_floating(p.bias.dtype, p.bias.at(b, h, i, j)) : 0;
    if (bias == -kInf && !p.has(kSoftcap)) seen[j] = false;
    if (!seen[j]) continue;
    s[j] = dot * p.softmax_scale + bias;
    double error = sum * std::abs(p.softmax_scale) + (std::isfinite(bias) ? std::abs(bias) : 0);
    if (p.has(kSoftcap)) {
      s[j] = p.softcap * std::tanh(s[j] / p.softcap);
      error += p.softcap;
    }
    s[j] = round_to(p.has(kLogitsDtype) ? p.logits_dtype : DType::none, s[j]);
    if (error > magnitude) magnitude = error;
    if (s[j] > top) top = s[j];
  }
  std::vector<double> sinks;
  if (p.has(kSinks))
    for (int64_t n = 0; n < p.sinks.shape[3]; ++n) {
      sinks.push_back(c.sinks.get(0, 0, h, n));
      top = std::max(top, sinks.back());
      magnitude = std::max(magnitude, std::abs(sinks.back()));
    }
  Expected e{std::vector<double>(p.head_dim_v), -kInf, 0, 0, 0};
  bool empty = sinks.empty();
  double total = 0, nan = 0;
  for (int64_t j = 0; j < keys; ++j) {
    if (!seen[j]) continue;
    empty = false;
    if (std::isnan(s[j])) nan = s[j];
    p_of[j] = std::exp(s[j] - top);
    total += p_of[j];
  }
  for (const double x : sinks) total += std::exp(x - top);
  if (empty) return e;
  if (std::isnan(nan)) total = nan;
  e.lse = top + std::log(total);
  // Rounded sums of `head_dim` products in each score, of `keys` terms in each sum; in the largest probability of the row.
  const double relative = epsilon * (3 * magnitude * 1.5 + 8 + 0.05 * static_cast<double>(keys));
  e.lse_error = relative + epsilon * std::abs(e.lse);
  double weight = 0;
  for (int64_t j = 0; j < keys; ++j) {
    if (!seen[j]) continue;
    const double kept = !p.has(kDropout) ? 1 : p.dropout.keep(b, h, i, j) ? p.dropout.scale : 0;
    const double x = p_of[j] * kept / (p.has(kUnnormalized) ? 1 : total);
    for (int64_t d = 0; d < p.head_dim_v; ++d) {
      const double value = c.v.get(kb, k0 + j, hk, d);
      e.out[d] += x * value;
      weight = std::max(weight, std::abs(value));
    }
  }
  if (std::isnan(nan)) std::fill(e.out.begin(), e.out.end(), nan);
  e.mass = weight * (p.has(kUnnormalized) ? total : 1) * (p.has(kDropout) ? p.dropout.scale : 1);
  e.out_error = relative * e.mass;
  return e;
}

void check(const Case& c, const char* kernel, const char* what, double got, double expected, double bound) {
  const bool same_kind = std::isnan(got) == std::isnan(expected) && std::isinf(got) == std::isinf(expected);
  if (same_kind && (std::isnan(expected) || got == expected || std::abs(got - expected) <= bound)) return;
  if (++failures <= 20)
    std::printf("%s, %s: %s is %.9g, expected %.9g, off by %.3g of %.3g\n", kernel, c.text.c_str(), what, got, expected,
                std::abs(got - expected), bound);
}

void run(const Kernel& kernel, Case& c, int threads) {
  const Plan plan = kernel.plan(c.p, c.config, threads);
  const size_t guard = 64;
  std::vector<unsigned char> workspace(plan.workspace_bytes + guard, 0xFF);
  kernel.run(c.p, plan, workspace.data(), {});
  for (size_t i = 0; i < guard; ++i)
    if (workspace[plan.workspace_bytes + i] != 0xFF && ++failures <= 20)
      std::printf("%s, %s: wrote past the workspace\n", kernel.name, c.text.c_str());
}

void check_case(const Kernel& kernel, Case& c) {
  const AttentionProblem& p = c.p;
  const std::string reason = kernel.why_not(p, c.config);
  const bool takes_everything = std::string(kernel.name) == "forward_" + std::string(kernel.isa) && std::string(kernel.isa) != "amx";
  if (!reason.empty() || (p.options & ~kernel.honours)) {
    ++refused;
    if (!takes_everything) return;
    ++failures;
    std::printf("%s refuses %s: %s\n", kernel.name, c.text.c_str(), reason.c_str());
    return;
  }
  std::fill(c.out.memory.begin(), c.out.memory.end(), 0xFF);
  std::fill(c.lse.memory.begin(), c.lse.memory.end(), 0xFF);
  run(kernel, c, 1);
  const std::vector<unsigned char> out = c.out.memory, lse = c.lse.memory;
  run(kernel, c, 3);
  if ((out != c.out.memory || lse != c.lse.memory) && ++failures <= 20)
    std::printf("%s, %s: other bits with 3 threads\n", kernel.name, c.text.c_str());

  // Rows inside the sequences, then those outside, then the bytes that belong to no row.
  std::vector<unsigned char> touched(c.out.memory.size(), 0);
  const double half = info(p.dtype).epsilon / 2, subnormal = p.dtype == DType::f16 ? 0x1p-24 : 0x1p-126;
  // To the input dtype before the product with v.
  const std::string isa = kernel.isa;
  const bool rounds_p = (isa == "amx" && (p.dtype == DType::bf16 || p.dtype == DType::f16)) ||
                        (isa == "avx512" && p.dtype == DType::bf16 && p.head_dim % 2 == 0 && fast_bf16_dots());
  const View& o = p.out;
  std::vector<bool> inside(o.shape[0] * o.shape[1]);
  const auto check_row = [&](int64_t ob, int64_t t, int64_t h, const Expected& e) {
    for (int64_t d = 0; d < p.head_dim_v; ++d) {
      const double error = e.out_error + (rounds_p ? half * e.mass : 0);
      const double bound = error + half * (std::abs(e.out[d]) + error) + subnormal;
      check(c, kernel.name, "out", c.out.get(ob, t, h, d), e.out[d], bound);
      std::memset(touched.data() + (o.at(ob, t, h, d) - reinterpret_cast<const char*>(c.out.memory.data())), 1, size_of(p.dtype));
    }
    if (p.lse) check(c, kernel.name, "lse", c.lse.get(ob, h, t, 0), e.lse, e.lse_error);
  };
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t i = 0; i < p.q_seqs.length(b); ++i) {
      const int64_t ob = p.q_seqs.batch_index(b), t = p.q_seqs.first_row(b) + i;
      inside[ob * o.shape[1] + t] = true;
      for (int64_t h = 0; h < p.heads_q; ++h) check_row(ob, t, h, expected_row(c, b, h, i));
    }
  const Expected cleared{std::vector<double>(p.head_dim_v), -kInf, 0, 0, 0};
  for (int64_t b = 0; b < o.shape[0]; ++b)
    for (int64_t t = 0; t < o.shape[1]; ++t)
      for (int64_t h = 0; h < p.heads_q && !inside[b * o.shape[1] + t]; ++h) check_row(b, t, h, cleared);
  for (size_t i = 0; i < touched.size(); ++i)
    if (!touched[i] && c.out.memory[i] != 0xFF && ++failures <= 20) std::printf("%s, %s: wrote beside out\n", kernel.name, c.text.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t first = argc > 2 ? std::atoll(argv[2]) : 0, count = argc > 1 ? std::atoll(argv[1]) : 400;
  for (const Kernel& kernel : cpu_forward_kernels()) {
    if (!kernel.available()) {
      std::printf("%s: this CPU cannot run it\n", kernel.name);
      continue;
    }
    const int before = failures, refused_before = refused;
    for (int64_t seed = first; seed < first + count; ++seed) check_case(kernel, *make_case(seed));
    const long long taken = count - (refused - refused_before);
    if (taken == 0) ++failures;
    std::printf("%s: %lld problems, %d failures\n", kernel.name, taken, failures - before);
  }
  return failures != 0;
}
