#include "cpu/mla_decode/driver.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>

#include "cpu/denormals.hpp"
#include "cpu/scalars.hpp"
#include "cpu/sinks.hpp"
#include "cpu/threads.hpp"

namespace attile {
namespace {

int64_t ceil_div(int64_t x, int64_t by) { return (x + by - 1) / by; }
int64_t up(int64_t x, int64_t to) { return ceil_div(x, to) * to; }

// A block of rows of a sequence, and its keys.
struct Block {
  int64_t sequence, first, count;
  int64_t keys;    // the rows see keys [0, keys) at most
  int64_t splits;  // parts of these, at least 1
  int64_t part;    // number of the first part's state; splits == 1: none
  bool taper;      // cut as for_each_part() says
};

// How many columns of a block are joined at a time: a whole number of chunks.
constexpr int64_t kJoinColumns = 128;

// One part of a block's keys, [begin, end).
struct Item {
  int64_t block, split, begin, end;
  int64_t keys() const { return end - begin; }
};

// How rows and keys are cut.
struct Cut {
  int64_t rows;        // of a block
  int64_t keys, step;  // of a part, a multiple of step
  bool taper;          // whether the last of several blocks is
};

// Calls f(begin, end) for every part of the keys. Tapered, the last but one is cut in two and the last in four: what is taken last is
// short, so that threads end together. A single block is not tapered: four parts more to join cost what they gain.
template <class F>
void for_each_part(int64_t keys, const Cut& cut, bool taper, F f) {
  const int64_t parts = std::max<int64_t>(1, ceil_div(keys, cut.keys));
  for (int64_t s = 0; s < parts; ++s) {
    const int64_t end = std::min(keys, (s + 1) * cut.keys), pieces = !taper || parts == 1 || s + 2 < parts ? 1 : s + 2 == parts ? 2 : 4;
    const int64_t step = up(ceil_div(cut.keys, pieces), cut.step);
    int64_t begin = s * cut.keys;
    do f(begin, std::min(end, begin + step));
    while ((begin += step) < end);
  }
}

// Calls f for every block, in the order of the batch.
template <class F>
void for_each_block(const AttentionProblem& p, const Cut& cut, F f) {
  int64_t part = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t rows = p.q_seqs.length(b) * p.group;
    const Mask mask = p.mask(b);
    for (int64_t r = 0; r < rows; r += cut.rows) {
      const int64_t count = std::min(cut.rows, rows - r);
      const int64_t keys = mask.keys(r / p.group, (r + count - 1) / p.group + 1).end;
      const bool taper = cut.taper && b + 1 == p.batch && r + count == rows && (b > 0 || r > 0);
      int64_t splits = 0;
      for_each_part(keys, cut, taper, [&](int64_t, int64_t) { ++splits; });
      f(Block{b, r, count, keys, splits, part, taper});
      if (splits > 1) part += splits;
    }
  }
}

struct Counts {
  int64_t blocks = 0, items = 0, parts = 0;
  double work = 0;  // multiply-adds
};

Counts count(const MlaDecodeProblem& p, const Cut& cut) {
  Counts n;
  for_each_block(p, cut, [&](const Block& block) {
    ++n.blocks;
    n.items += block.splits;
    if (block.splits > 1) n.parts += block.splits;
    n.work += static_cast<double>(block.count) * static_cast<double>(block.keys);
  });
  n.work *= static_cast<double>(p.latent + p.head_dim);
  return n;
}

// Keys are cut so that 32 units exist, each of at least 1024 keys and 16 for each row, which makes joining two parts a few percent of
// computing them; from shapes and lengths alone, so that the bits do not depend on threads.
int64_t choose_splits(const MlaDecodeProblem& p, int64_t block_q) {
  constexpr int64_t kUnits = 32, kKeys = 1024, kKeysForRow = 16;
  const int64_t rows = std::min(block_q, p.q_seqs.longest * p.group);
  const int64_t units = std::max<int64_t>(1, count(p, {block_q, Mask::kUnlimited, 1, false}).blocks);
  return std::clamp<int64_t>(std::min(ceil_div(kUnits, units), p.k_seqs.longest / std::max(kKeys, rows * kKeysForRow)), 1, kUnits);
}

// The longest sequence has num_splits parts. Those of a number that was asked for, and would not have been chosen, are equal.
Cut cut_of(const MlaDecodeProblem& p, const Plan& plan) {
  const int64_t keys = std::max(plan.block_k, up(ceil_div(p.k_seqs.longest, plan.num_splits), plan.block_k));
  return {plan.block_q, keys, plan.block_k, plan.num_splits > 1 && plan.num_splits == choose_splits(p, plan.block_q)};
}

// Items that one worker takes together: neighbours of one block, whose queries it packs once; never more than half of its share of the
// keys that are left, so that workers end together. Returns how many runs there are.
int64_t make_runs(const Item* items, int64_t count, int workers, int64_t* runs) {
  int64_t left = 0, n = 0;
  for (int64_t i = 0; i < count; ++i) left += items[i].keys();
  for (int64_t i = 0; i < count;) {
    runs[n++] = i;
    const int64_t block = items[i].block, most = left / (2 * workers);
    int64_t keys = items[i].keys();
    while (++i < count && items[i].block == block && keys + items[i].keys() <= most) keys += items[i].keys();
    left -= keys;
  }
  runs[n] = count;
  return n;
}

MlaDecodeShape shape_of(const MlaDecodeIsa& isa, const MlaDecodeProblem& p, const Plan& plan) {
  const int64_t panel = kPanelVectors * isa.vector_bytes / (p.dtype == DType::f64 ? 8 : 4);
  return {up(plan.block_q, panel), p.latent, p.rope, p.head_rope ? p.heads_q : 1, plan.block_k, p.dtype};
}

struct Layout {
  int64_t lanes;
  size_t element;
  size_t max, sum, out, state_bytes;  // of a BlockState, from its start
  size_t last_block, queries, rope, state, scratch, worker_bytes;
  size_t blocks, items, runs, parts, workers, total;
  MlaDecodeShape shape;

  Layout(const MlaDecodeIsa& isa, const MlaDecodeProblem& p, const Plan& plan, const Counts& n) {
    element = p.dtype == DType::f64 ? 8 : 4;
    lanes = isa.vector_bytes / static_cast<int64_t>(element);
    shape = shape_of(isa, p, plan);
    const int64_t rows = shape.rows;

    size_t at = 0;
    const auto take = [&](size_t bytes) {
      const size_t begin = at;
      at += (bytes + 63) / 64 * 64;
      return begin;
    };
    max = take(rows * element);
    sum = take(rows * element);
    out = take(rows * up(p.latent, kStateColumns) * element);
    state_bytes = at;

    at = 0;
    last_block = take(sizeof(int64_t));
    queries = take(rows * sizeof(QueryRow));
    rope = take(rows * sizeof(RopeRow));
    state = take(state_bytes);
    scratch = take(isa.scratch_bytes[element == 8](shape));
    worker_bytes = at;

    at = 0;
    blocks = take(n.blocks * sizeof(Block));
    items = take(n.items * sizeof(Item));
    runs = take((n.items + 1) * sizeof(int64_t));
    parts = take(n.parts * state_bytes);
    workers = take(plan.workers * worker_bytes);
    total = at + 64;
  }
};

struct Run {
  const MlaDecodeIsa& isa;
  const MlaDecodeProblem& p;
  const Plan& plan;
  Layout layout;
  char* base;
  const Block* blocks;
  const Item* items;
  const int64_t* runs;  // where each begins; one more at the end
  int64_t item_count, run_count;
  std::atomic<int64_t>& runs_taken;

  int accumulator() const { return layout.element == 8; }
  // Whose queries the worker's scratch holds.
  int64_t& last_block(int worker) const {
    return *reinterpret_cast<int64_t*>(base + layout.workers + worker * layout.worker_bytes + layout.last_block);
  }
  BlockState state_at(char* at) const { return {at + layout.max, at + layout.sum, at + layout.out}; }
  BlockState part(const Block& block, int64_t split) const {
    return state_at(base + layout.parts + (block.part + split) * layout.state_bytes);
  }

  // Rows of the block, padded to whole vectors with copies of the last; they begin from the sinks in the first part only.
  void fill_rows(const Block& block, int64_t split, QueryRow* rows, RopeRow* rope) const {
    const int64_t b = block.sequence, q_batch = p.q_seqs.batch_index(b), q_first = p.q_seqs.first_row(b);
    const Mask mask = p.mask(b);
    int64_t i = block.first / p.group, h = block.first % p.group;
    Range keys = mask.keys(i, i + 1);
    for (int64_t r = 0; r < block.count; ++r) {
      QueryRow& row = rows[r];
      row = {};
      row.q = p.q.at(q_batch, q_first + i, h);
      row.out = p.out.at(q_batch, q_first + i, h);
      row.lse = p.lse ? p.lse.at(q_batch, h, q_first + i) : nullptr;
      row.key_begin = keys.begin;
      row.key_end = keys.end;
      row.sink_max = -std::numeric_limits<double>::infinity();
      if (p.sinks && split == 0) {
        if (r < p.group) {
          read_sinks(p, h, row);
        } else {
          row.sink_max = rows[r - p.group].sink_max;
          row.sink_sum = rows[r - p.group].sink_sum;
        }
      }
      rope[r] = {p.q_pe ? p.q_pe.at(q_batch, q_first + i, h) : nullptr, p.head_rope ? h : 0};
      if (++h == p.group) {
        h = 0;
        ++i;
        keys = mask.keys(i, i + 1);
      }
    }
    for (int64_t r = block.count; r < up(block.count, layout.lanes); ++r) {
      rows[r] = rows[block.count - 1];
      rope[r] = rope[block.count - 1];
    }
  }

  // A unit's keys and its part, if it is one of several, and nothing else of it.
  MlaDecodeUnit keys_of(const Item& item) const {
    const Block& block = blocks[item.block];
    MlaDecodeUnit m{};
    Unit& u = m.base;
    const int64_t size = static_cast<int64_t>(size_of(p.dtype));
    const int64_t batch = p.page_table ? 0 : block.sequence;
    u.k = u.v = p.k.at(batch, 0, 0);
    u.k_stride = u.v_stride = p.k.stride[1] * size;
    m.kpe = p.kpe ? p.kpe.at(batch, 0, 0) : nullptr;
    m.kpe_stride = p.kpe.stride[1] * size;
    m.kpe_page = p.kpe.stride[0] * size;
    m.kpe_head = p.kpe.stride[2] * size;
    if (p.page_table) {
      const int64_t page = p.k.stride[0] * size;
      u.pages = {p.page_entry(block.sequence, 0),
                 p.page_table.dtype,
                 p.page_table.stride[3] * static_cast<int64_t>(size_of(p.page_table.dtype)),
                 p.page_size(),
                 page,
                 page};
    }
    u.key_begin = item.begin;
    u.key_end = item.end;
    if (block.splits > 1) u.state = part(block, item.split);
    return m;
  }

  MlaDecodeUnit make_unit(const Item& item, int worker) const {
    const Block& block = blocks[item.block];
    char* own = base + layout.workers + worker * layout.worker_bytes;
    QueryRow* rows = reinterpret_cast<QueryRow*>(own + layout.queries);
    RopeRow* rope = reinterpret_cast<RopeRow*>(own + layout.rope);
    fill_rows(block, item.split, rows, rope);

    MlaDecodeUnit m = keys_of(item);
    Unit& u = m.base;
    u.rows = rows;
    u.count = block.count;
    u.head_dim = p.head_dim;
    u.head_dim_v = p.latent;
    u.dtype = p.dtype;
    u.block_k = plan.block_k;
    u.softmax_scale = p.softmax_scale;
    u.softcap = p.has(kSoftcap) ? p.softcap : 0;
    u.logits_dtype = u.bias_dtype = u.key_ids_dtype = DType::none;
    u.normalize = true;
    if (block.splits == 1) u.state = state_at(own + layout.state);
    m.rope = rope;
    m.shape = layout.shape;
    m.scratch = own + layout.scratch;
    return m;
  }

  // lse is natural in the kernels.
  void scale_lse(const Unit& u) const {
    if (p.lse_scale == 1 || !p.lse) return;
    for (int64_t r = 0; r < u.count; ++r)
      write_floating(p.lse.dtype, u.rows[r].lse, read_floating(p.lse.dtype, u.rows[r].lse) * p.lse_scale);
  }

  // A worker's way through the items: runs of them, as long as there are any.
  struct Path {
    const Run& run;
    int64_t item, end;  // [item, end) is left of the run
    bool stepped;       // `item` is already the one after the unit at hand, and `next` is its unit
    MlaDecodeUnit next;

    bool ended() const { return item == run.item_count; }
    void step() {
      stepped = true;
      if (++item < end) return;
      const int64_t taken = run.runs_taken.fetch_add(1, std::memory_order_relaxed), first = std::min(taken, run.run_count);
      item = run.runs[first];
      end = run.runs[std::min(taken + 1, run.run_count)];
    }
    static const MlaDecodeUnit* next_unit(void* path) {
      Path& self = *static_cast<Path*>(path);
      if (!self.stepped) {
        self.step();
        if (!self.ended()) self.next = self.run.keys_of(self.run.items[self.item]);
      }
      return self.ended() ? nullptr : &self.next;
    }
  };

  void attend(int worker) const {
    const FlushDenormals mode;
    Path path{*this, -1, 0, false, {}};
    path.step();
    for (bool expected = false; !path.ended();) {
      const Item& item = items[path.item];
      MlaDecodeUnit m = make_unit(item, worker);
      m.expected = expected;
      m.packed = std::exchange(last_block(worker), item.block) == item.block;
      m.next = Path::next_unit;
      m.path = &path;
      path.stepped = false;
      const bool whole = blocks[item.block].splits == 1;
      isa.attend[accumulator()](m, whole);
      if (whole) scale_lse(m.base);
      expected = path.stepped;
      if (!path.stepped) path.step();
    }
  }

  // Columns [begin, begin + kJoinColumns) of a block.
  void join(const Block& block, int64_t begin, int worker) const {
    const FlushDenormals mode;
    char* own = base + layout.workers + worker * layout.worker_bytes;
    Unit u = make_unit({&block - blocks, 0, 0, 0}, worker).base;
    u.state = state_at(own + layout.state);
    QueryRow* rows = reinterpret_cast<QueryRow*>(own + layout.queries);
    for (int64_t r = 0; r < block.count; ++r) {
      rows[r].out += begin * static_cast<int64_t>(size_of(p.dtype));
      if (begin > 0) rows[r].lse = nullptr;
    }
    u.head_dim_v = std::min(kJoinColumns, p.latent - begin);
    BlockState parts[Config::kMaxSplits];
    for (int64_t s = 0; s < block.splits; ++s) parts[s] = part(block, s);
    isa.join[accumulator()](u, parts, block.splits, begin, p.latent);
    if (begin == 0) scale_lse(u);
  }

  // Tokens of a packed batch behind its last sequence.
  void clear() const {
    if (!p.q_seqs.packed) return;
    for (int64_t t = p.q_seqs.cu[p.batch]; t < p.q_seqs.rows; ++t) {
      for (int64_t h = 0; h < p.heads_q; ++h) {
        std::memset(p.out.at(0, t, h), 0, p.latent * size_of(p.dtype));
        if (p.lse) write_floating(p.lse.dtype, p.lse.at(0, h, t), -std::numeric_limits<double>::infinity());
      }
    }
  }
};

}  // namespace

std::string mla_decode_why_not(const AttentionProblem& problem, const Config&) {
  if (problem.dtype > DType::bf16) return "takes float64, float32, float16 and bfloat16 only";
  return "";
}

Plan plan_mla_decode(const MlaDecodeIsa& isa, const MlaDecodeProblem& p, const Config& config, int threads) {
  constexpr int64_t kRows = 128;
  const int64_t element = p.dtype == DType::f64 ? 8 : 4, lanes = isa.vector_bytes / element;
  Plan plan;
  const int64_t rows = std::max<int64_t>(1, p.q_seqs.longest * p.group);
  plan.block_q = up(std::min(config.block_q ? config.block_q : kRows, rows), lanes);
  plan.block_k = config.block_k ? config.block_k : isa.block_k(shape_of(isa, p, plan));
  plan.block_k = up(std::min(plan.block_k, std::max<int64_t>(1, p.k_seqs.longest)), isa.block_step);
  plan.num_splits = config.num_splits ? std::min(config.num_splits, std::max<int64_t>(1, ceil_div(p.k_seqs.longest, plan.block_k)))
                                      : choose_splits(p, plan.block_q);

  // Waking a thread costs 3 us: about as much as this many multiply-adds.
  constexpr double kSerialWork = 3e5;
  const Counts n = count(p, cut_of(p, plan));
  plan.workers = n.work < kSerialWork ? 1 : static_cast<int>(std::clamp<int64_t>(n.items, 1, std::max(1, threads)));
  plan.workspace_bytes = Layout(isa, p, plan, n).total;
  return plan;
}

void run_mla_decode(const MlaDecodeIsa& isa, const MlaDecodeProblem& p, const Plan& plan, void* workspace,
                    const attile_executor* executor) {
  const Cut cut = cut_of(p, plan);
  const Counts n = count(p, cut);
  const Layout layout(isa, p, plan, n);
  char* base = static_cast<char*>(workspace) + (-reinterpret_cast<uintptr_t>(workspace) & 63);
  Block* blocks = reinterpret_cast<Block*>(base + layout.blocks);
  Item* items = reinterpret_cast<Item*>(base + layout.items);
  int64_t* runs = reinterpret_cast<int64_t*>(base + layout.runs);
  alignas(64) std::atomic<int64_t> runs_taken{0};
  Run run{isa, p, plan, layout, base, blocks, items, runs, n.items, 0, runs_taken};
  run.clear();
  if (n.blocks == 0) return;

  // Longest first.
  Item* end = items;
  for_each_block(p, cut, [&](const Block& block) {
    *blocks = block;
    int64_t split = 0;
    for_each_part(block.keys, cut, block.taper, [&](int64_t begin, int64_t stop) { *end++ = {blocks - run.blocks, split++, begin, stop}; });
    ++blocks;
  });
  std::sort(items, end, [](const Item& a, const Item& b) {
    return std::tuple(-a.keys(), a.block, a.split) < std::tuple(-b.keys(), b.block, b.split);
  });
  run.run_count = make_runs(items, n.items, plan.workers, runs);

  for (int worker = 0; worker < plan.workers; ++worker) run.last_block(worker) = -1;
  parallel_for(executor, plan.workers, plan.workers, [&](int64_t, int worker) { run.attend(worker); });
  if (n.parts == 0) return;
  const int64_t pieces = ceil_div(p.latent, kJoinColumns);
  parallel_for(executor, n.blocks * pieces, plan.workers, [&](int64_t index, int worker) {
    const Block& block = run.blocks[index / pieces];
    if (block.splits > 1) run.join(block, index % pieces * kJoinColumns, worker);
  });
}

}  // namespace attile
