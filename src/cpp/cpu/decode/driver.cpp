#include "cpu/decode/driver.hpp"

#include <algorithm>
#include <limits>

#include "cpu/denormals.hpp"
#include "cpu/sinks.hpp"
#include "cpu/threads.hpp"

namespace attile {
namespace {

constexpr int64_t kMostRows = 16;  // of a key head
constexpr int64_t kBlockBytes = 64 << 10;
constexpr int64_t kLanes = 16;  // of the widest vector

int64_t ceil_div(int64_t x, int64_t by) { return (x + by - 1) / by; }
int64_t round_up(int64_t x, int64_t to) { return ceil_div(x, to) * to; }
int64_t bytes_of(DType dtype) { return static_cast<int64_t>(size_of(dtype)); }

int64_t query_rows(const AttentionProblem& p) { return p.q_seqs.longest * p.group; }

// Keys that some query of sequence b sees by position.
Range seen_keys(const AttentionProblem& p, int64_t b) { return p.mask(b).keys(0, p.q_seqs.length(b)); }

// The state of a part of a sequence's keys is joined with that of the others; head_begin and head_end say which heads of it are one
// unit of work.
struct Item {
  int64_t sequence, part, begin, end, head_begin, head_end;
};

// Heads whose keys and values of a block stay in L2 beside those of the next block.
int64_t block_heads(const AttentionProblem& p, const Plan& plan) {
  return std::clamp<int64_t>(kBlockBytes / (plan.block_k * (p.head_dim + p.head_dim_v) * bytes_of(p.dtype)), 1, std::max<int64_t>(1, p.heads_k));
}

int64_t keys_of_part(const AttentionProblem& p, const Plan& plan) {
  return std::max(plan.block_k, round_up(ceil_div(p.k_seqs.longest, plan.num_splits), plan.block_k));
}

// Calls f for every item in the order of memory: parts of a sequence behind each other.
template <class F>
void for_each_item(const AttentionProblem& p, const Plan& plan, F f) {
  const int64_t share = keys_of_part(p, plan), heads = block_heads(p, plan);
  for (int64_t b = 0; b < p.batch; ++b) {
    const Range keys = seen_keys(p, b);
    for (int64_t h = 0; h < p.heads_k; h += heads) {
      for (int64_t j = keys.begin; j < keys.end; j += share)
        f(Item{b, (j - keys.begin) / share, j, std::min(keys.end, j + share), h, std::min(p.heads_k, h + heads)});
    }
  }
}

struct Count {
  int64_t items = 0, parts = 0;
};

Count count_items(const AttentionProblem& p, const Plan& plan) {
  Count n;
  for_each_item(p, plan, [&](const Item& item) {
    ++n.items;
    n.parts += item.head_begin == 0;
  });
  return n;
}

struct Layout {
  DecodeLayout state;
  int64_t queries, scores, running, address, runs, row_begin, row_end, worker_bytes;  // of a worker
  int64_t items, firsts, parts, workers, total;

  Layout(const DecodeIsa& isa, const AttentionProblem& p, const Plan& plan, const Count& count) {
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
    scores = take(round_up(plan.block_k, kLanes) * std::min<int64_t>(rows, kMostRows) * element);
    running = take(all * 2 * lanes * element);
    address = take(4 * round_up(plan.block_k, kLanes) * static_cast<int64_t>(sizeof(char*)));
    runs = take(2 * plan.block_k * block_heads(p, plan) * 2 * static_cast<int64_t>(sizeof(char*)));
    row_begin = take(rows * 8);
    row_end = take(rows * 8);
    worker_bytes = at;

    at = 0;
    items = take(count.items * static_cast<int64_t>(sizeof(Item)));
    firsts = take((p.batch + 1) * 8);
    parts = take(count.parts * state.bytes);
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
  const Item* items;
  int64_t item_count, run_count;
  const int64_t* firsts;  // of a sequence's parts; one more at the end

  int accumulator() const { return p.dtype == DType::f64 ? 1 : 0; }

  DecodeKeys keys_of(const Item& item) const {
    const int64_t b = item.sequence, size = bytes_of(p.dtype), k_batch = p.k_seqs.batch_index(b), k_first = p.k_seqs.first_row(b);
    DecodeKeys keys{};
    if (p.page_table) {
      const View& table = p.page_table;
      keys.k = p.k.data;
      keys.v = p.v.data;
      keys.pages = {table.at(0, 0, b), table.dtype, table.stride[3] * bytes_of(table.dtype), p.page_size(), p.k.stride[0] * size,
                    p.v.stride[0] * size};
    } else {
      keys.k = p.k.at(k_batch, k_first, 0);
      keys.v = p.v.at(k_batch, k_first, 0);
    }
    keys.begin = item.begin;
    keys.end = item.end;
    keys.head_begin = item.head_begin;
    keys.head_end = item.head_end;
    return keys;
  }

  // Items one after the other, so that the end of one can ask for the beginning of the next.
  void attend(int64_t index, int worker) const {
    const FlushDenormals mode;
    const int64_t end = (index + 1) * item_count / run_count;
    for (int64_t i = index * item_count / run_count; i < end; ++i) attend_item(items[i], i + 1 < end ? &items[i + 1] : nullptr, worker);
  }

  void attend_item(const Item& item, const Item* next, int worker) const {
    const int64_t b = item.sequence, size = bytes_of(p.dtype);
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
    u.head_dim = p.head_dim;
    u.head_dim_v = p.head_dim_v;
    u.dtype = p.dtype;
    u.keys = keys_of(item);
    if (next) u.next = keys_of(*next);
    u.k_stride = p.k.stride[1] * size;
    u.v_stride = p.v.stride[1] * size;
    u.k_head = p.k.stride[2] * size;
    u.v_head = p.v.stride[2] * size;
    u.row_begin = row_begin;
    u.row_end = row_end;
    u.block_k = plan.block_k;
    u.block_room = round_up(plan.block_k, kLanes);
    u.row_step = plan.block_q;
    u.softmax_scale = p.softmax_scale;
    u.softcap = p.has(kSoftcap) ? p.softcap : 0;
    u.part = base + layout.parts + (firsts[b] + item.part) * layout.state.bytes;
    u.layout = layout.state;
    u.queries = own + layout.queries;
    u.scores = own + layout.scores;
    u.running = own + layout.running;
    u.address = reinterpret_cast<const char**>(own + layout.address);
    u.runs = own + layout.runs;
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

// Keys and values of all heads within kBlockBytes, but at least as many keys as a vector of scores has.
int64_t choose_block_k(const AttentionProblem& p) {
  const int64_t least = query_rows(p) > 1 ? kLanes / 2 : kLanes;
  const int64_t bytes = std::max<int64_t>(1, p.heads_k) * (p.head_dim + p.head_dim_v) * bytes_of(p.dtype);
  return std::clamp(kBlockBytes / bytes / kLanes * kLanes, least, 4 * kLanes);
}

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
  const int64_t most_rows = isa.vector_bytes == 64 ? 8 : 4;  // of a block
  plan.block_q = std::min({config.block_q ? config.block_q : most_rows, most_rows, std::max<int64_t>(1, query_rows(p))});
  plan.block_k = config.block_k ? config.block_k : choose_block_k(p);

  // Parts: enough for many threads, from the lengths alone; each so long that its beginning and the joining cost little.
  constexpr int64_t kFewParts = 16, kParts = 32, kShort = 256, kLong = 512;
  int64_t keys = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const Range seen = seen_keys(p, b);
    keys += seen.end - seen.begin;
  }
  const int64_t share = std::max({kShort, std::min(kLong, ceil_div(keys, kFewParts)), ceil_div(keys, kParts)});
  plan.num_splits = std::clamp<int64_t>(config.num_splits ? config.num_splits : ceil_div(p.k_seqs.longest, share), 1, Config::kMaxSplits);

  const Count n = count_items(p, plan);
  // Waking a thread costs 3 us: about as much as this many multiply-adds.
  constexpr double kSerialWork = 3e5;
  const double work = static_cast<double>(keys) * static_cast<double>(query_rows(p) * p.heads_k * (p.head_dim + p.head_dim_v));
  plan.workers = work < kSerialWork ? 1 : static_cast<int>(std::clamp<int64_t>(n.items, 1, std::max(1, threads)));
  plan.workspace_bytes = Layout(isa, p, plan, n).total;
  return plan;
}

void run_decode(const DecodeIsa& isa, const AttentionProblem& p, const Plan& plan, void* workspace, const attile_executor* executor) {
  if (p.heads_k == 0 || query_rows(p) == 0) return;
  const Count n = count_items(p, plan);
  const Layout layout(isa, p, plan, n);
  char* base = static_cast<char*>(workspace) + (-reinterpret_cast<uintptr_t>(workspace) & 63);
  Item* items = reinterpret_cast<Item*>(base + layout.items);
  int64_t* firsts = reinterpret_cast<int64_t*>(base + layout.firsts);
  std::fill(firsts, firsts + p.batch + 1, 0);
  Item* end = items;
  for_each_item(p, plan, [&](const Item& item) {
    *end++ = item;
    firsts[item.sequence + 1] += item.head_begin == 0;
  });
  for (int64_t b = 0; b < p.batch; ++b) firsts[b + 1] += firsts[b];

  // Runs of items: several a thread where there are threads, so that they end together.
  constexpr int64_t kRuns = 4;
  const int64_t runs = std::min(n.items, plan.workers > 1 ? kRuns * plan.workers : 1);
  const Run run{isa, p, plan, layout, base, items, n.items, runs, firsts};
  parallel_for(executor, runs, plan.workers, [&](int64_t index, int worker) { run.attend(index, worker); });
  parallel_for(executor, p.batch * p.heads_k, plan.workers, [&](int64_t index, int worker) { run.join(index, worker); });
}

}  // namespace attile
