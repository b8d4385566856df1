#include "cpu/decode/driver.hpp"

#include <algorithm>
#include <limits>

#include "cpu/denormals.hpp"
#include "cpu/sinks.hpp"
#include "cpu/threads.hpp"

namespace attile {
namespace {

constexpr int64_t kMostRows = 16;  // of a key head
constexpr int64_t kMostBlock = 4096, kMostSplits = 1024;
constexpr int64_t kBlockStep = 16;  // lanes of the widest vector

int64_t ceil_div(int64_t x, int64_t by) { return (x + by - 1) / by; }
int64_t round_up(int64_t x, int64_t to) { return ceil_div(x, to) * to; }
int64_t bytes_of(DType dtype) { return static_cast<int64_t>(size_of(dtype)); }

int64_t query_rows(const AttentionProblem& p) { return p.q_seqs.longest * p.group; }

// Keys that some query of sequence b sees by position.
Range seen_keys(const AttentionProblem& p, int64_t b) { return p.mask(b).keys(0, p.q_seqs.length(b)); }

// A part is a range of keys of a sequence, and the work of one thread at a time.
struct Part {
  int64_t sequence, begin, end;
};

int64_t keys_of_part(const AttentionProblem& p, const Plan& plan) {
  return std::max(plan.block_k, round_up(ceil_div(p.k_seqs.longest, plan.num_splits), plan.block_k));
}

template <class F>
void for_each_part(const AttentionProblem& p, const Plan& plan, F f) {
  const int64_t share = keys_of_part(p, plan);
  for (int64_t b = 0; b < p.batch; ++b) {
    const Range keys = seen_keys(p, b);
    for (int64_t j = keys.begin; j < keys.end; j += share) f(Part{b, j, std::min(keys.end, j + share)});
  }
}

struct Layout {
  DecodeLayout state;
  int64_t queries, scores, running, address, row_begin, row_end, worker_bytes;  // of a worker
  int64_t list, firsts, parts, workers, total;

  Layout(const DecodeIsa& isa, const AttentionProblem& p, const Plan& plan, int64_t part_count) {
    const int64_t element = p.dtype == DType::f64 ? 8 : 4, lanes = isa.vector_bytes / element, rows = query_rows(p), all = rows * p.heads_k;
    int64_t at = 0;
    const auto take = [&](int64_t bytes) {
      const int64_t begin = at;
      at += round_up(bytes, 64);
      return begin;
    };
    state.columns = round_up(p.head_dim_v, 2 * lanes);
    state.max = take(all * element);
    state.sum = take(all * element);
    state.out = take(all * state.columns * element);
    state.bytes = at;

    at = 0;
    queries = take(all * round_up(p.head_dim, 2 * lanes) * element);
    scores = take(plan.block_k * std::min<int64_t>(rows, kMostRows) * element);
    running = take(all * 2 * lanes * element);
    address = take(4 * plan.block_k * static_cast<int64_t>(sizeof(char*)));
    row_begin = take(rows * 8);
    row_end = take(rows * 8);
    worker_bytes = at;

    at = 0;
    list = take(part_count * static_cast<int64_t>(sizeof(Part)));
    firsts = take((p.batch + 1) * 8);
    parts = take(part_count * state.bytes);
    workers = take(plan.workers * worker_bytes);
    total = at + 64;
  }
};

struct Run {
  const DecodeIsa& isa;
  const AttentionProblem& p;
  const Plan& plan;
  Layout layout;
  char* base;
  const Part* list;
  const int64_t* firsts;  // of a sequence's parts in the list; one more at the end

  int accumulator() const { return p.dtype == DType::f64 ? 1 : 0; }

  void attend(int64_t index, int worker) const {
    const FlushDenormals mode;
    const Part& part = list[index];
    const int64_t b = part.sequence, size = bytes_of(p.dtype), k_batch = p.k_seqs.batch_index(b), k_first = p.k_seqs.first_row(b);
    char* own = base + layout.workers + worker * layout.worker_bytes;
    int64_t *row_begin = reinterpret_cast<int64_t*>(own + layout.row_begin), *row_end = reinterpret_cast<int64_t*>(own + layout.row_end);
    const Mask mask = p.mask(b);
    for (int64_t r = 0; r < query_rows(p); ++r) {
      const Range keys = mask.keys(r / p.group, r / p.group + 1);
      row_begin[r] = keys.begin;
      row_end[r] = keys.end;
    }

    DecodeUnit u{};
    u.q = p.q.at(b, 0, 0);
    u.q_position = p.q.stride[1] * size;
    u.q_head = p.q.stride[2] * size;
    u.rows = query_rows(p);
    u.group = p.group;
    u.heads_k = p.heads_k;
    u.head_dim = p.head_dim;
    u.head_dim_v = p.head_dim_v;
    u.dtype = p.dtype;
    if (p.page_table) {
      const View& table = p.page_table;
      u.k = p.k.data;
      u.v = p.v.data;
      u.pages = {table.at(0, 0, b), table.dtype, table.stride[3] * bytes_of(table.dtype), p.page_size(), p.k.stride[0] * size, p.v.stride[0] * size};
    } else {
      u.k = p.k.at(k_batch, k_first, 0);
      u.v = p.v.at(k_batch, k_first, 0);
    }
    u.k_stride = p.k.stride[1] * size;
    u.v_stride = p.v.stride[1] * size;
    u.k_head = p.k.stride[2] * size;
    u.v_head = p.v.stride[2] * size;
    u.key_begin = part.begin;
    u.key_end = part.end;
    u.row_begin = row_begin;
    u.row_end = row_end;
    u.block_k = plan.block_k;
    u.row_step = plan.block_q;
    u.softmax_scale = p.softmax_scale;
    u.softcap = p.has(kSoftcap) ? p.softcap : 0;
    u.part = base + layout.parts + index * layout.state.bytes;
    u.layout = layout.state;
    u.queries = own + layout.queries;
    u.scores = own + layout.scores;
    u.running = own + layout.running;
    u.address = reinterpret_cast<const char**>(own + layout.address);
    isa.attend[accumulator()](u);
  }

  // Index: sequence by sequence, key head by key head.
  void join(int64_t index, int) const {
    const FlushDenormals mode;
    const int64_t b = index / p.heads_k, hk = index % p.heads_k, rows = query_rows(p);
    QueryRow row[kMostRows] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = r / p.group, h = hk * p.group + r % p.group;
      row[r].out = p.out.at(b, i, h);
      row[r].lse = p.lse ? p.lse.at(b, h, i) : nullptr;
      row[r].sink_max = -std::numeric_limits<double>::infinity();
      if (p.sinks) read_sinks(p, h, row[r]);
    }
    DecodeJoin j{};
    j.parts = base + layout.parts + firsts[b] * layout.state.bytes;
    j.count = firsts[b + 1] - firsts[b];
    j.layout = layout.state;
    j.first_row = hk * rows;
    j.rows = row;
    j.row_count = rows;
    j.head_dim_v = p.head_dim_v;
    j.dtype = p.dtype;
    j.softmax_scale = p.softmax_scale;
    j.softcap = p.has(kSoftcap) ? p.softcap : 0;
    isa.join[accumulator()](j);
  }
};

}  // namespace

std::string decode_why_not(const AttentionProblem& p, const Config&) {
  if (p.dtype == DType::f8e4m3) return "float8_e4m3 runs on CUDA only";
  if (p.dtype > DType::bf16) return "takes float64, float32, float16 and bfloat16 only";
  if (query_rows(p) > kMostRows)
    return "takes at most " + std::to_string(kMostRows) + " rows (query positions times heads of a group): got " + std::to_string(query_rows(p));
  return "";
}

Plan plan_decode(const DecodeIsa& isa, const AttentionProblem& p, const Config& config, int threads) {
  Plan plan;
  plan.block_q = std::min(config.block_q ? config.block_q : 8, std::max<int64_t>(1, query_rows(p)));
  plan.block_k = std::min(round_up(config.block_k ? config.block_k : 16, kBlockStep), kMostBlock);

  // Parts: enough for many threads, from the lengths alone; each so long that joining it costs little.
  constexpr int64_t kParts = 32, kKeys = 256;
  int64_t keys = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const Range seen = seen_keys(p, b);
    keys += seen.end - seen.begin;
  }
  const int64_t share = std::max(kKeys, ceil_div(keys, kParts));
  plan.num_splits = std::clamp<int64_t>(config.num_splits ? config.num_splits : ceil_div(p.k_seqs.longest, share), 1, kMostSplits);

  int64_t parts = 0;
  for_each_part(p, plan, [&](const Part&) { ++parts; });
  if (p.heads_k == 0) parts = 0;
  // Waking a thread costs 3 us: about as much as this many multiply-adds.
  constexpr double kSerialWork = 3e5;
  const double work = static_cast<double>(keys) * static_cast<double>(query_rows(p) * p.heads_k * (p.head_dim + p.head_dim_v));
  plan.workers = work < kSerialWork ? 1 : static_cast<int>(std::clamp<int64_t>(parts, 1, std::max(1, threads)));
  plan.workspace_bytes = Layout(isa, p, plan, parts).total;
  return plan;
}

void run_decode(const DecodeIsa& isa, const AttentionProblem& p, const Plan& plan, void* workspace, const attile_executor* executor) {
  if (p.heads_k == 0 || query_rows(p) == 0) return;
  int64_t count = 0;
  for_each_part(p, plan, [&](const Part&) { ++count; });
  const Layout layout(isa, p, plan, count);
  char* base = static_cast<char*>(workspace) + (-reinterpret_cast<uintptr_t>(workspace) & 63);
  Part* list = reinterpret_cast<Part*>(base + layout.list);
  int64_t* firsts = reinterpret_cast<int64_t*>(base + layout.firsts);
  std::fill(firsts, firsts + p.batch + 1, 0);
  Part* end = list;
  for_each_part(p, plan, [&](const Part& part) {
    *end++ = part;
    ++firsts[part.sequence + 1];
  });
  for (int64_t b = 0; b < p.batch; ++b) firsts[b + 1] += firsts[b];

  const Run run{isa, p, plan, layout, base, list, firsts};
  parallel_for(executor, count, plan.workers, [&](int64_t index, int worker) { run.attend(index, worker); });
  parallel_for(executor, p.batch * p.heads_k, plan.workers, [&](int64_t index, int worker) { run.join(index, worker); });
}

}  // namespace attile
