#include "cpu/forward_driver.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/denormals.hpp"
#include "cpu/features.hpp"
#include "cpu/forward_layout.hpp"
#include "cpu/scalars.hpp"
#include "cpu/sinks.hpp"
#include "cpu/threads.hpp"

namespace attile {
namespace {

constexpr int64_t kClearTokens = 256;
constexpr int64_t kLargeOut = 2 << 20;  // L2

int64_t ceil_div(int64_t x, int64_t by) { return (x + by - 1) / by; }

// Calls f for every item, in the order of the batch.
template <class F>
void for_each_item(const AttentionProblem& p, int64_t block_q, F f) {
  const auto clear = [&](int64_t b, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t += kClearTokens) f(ForwardItem{b, t, std::min(kClearTokens, end - t), -1});
  };
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t rows = p.q_seqs.length(b) * p.group;
    const Mask mask = p.mask(b);
    for (int64_t r = 0; r < rows; r += block_q) {
      const int64_t count = std::min(block_q, rows - r);
      const Range keys = mask.keys(r / p.group, (r + count - 1) / p.group + 1);
      f(ForwardItem{b, r, count, keys.end - keys.begin});
    }
    if (!p.q_seqs.packed) clear(b, p.q_seqs.length(b), p.q_seqs.rows);
  }
  if (p.q_seqs.packed) clear(0, p.batch > 0 ? p.q_seqs.cu[p.batch] : 0, p.q_seqs.rows);
}

struct Count {
  int64_t items = 0, attending = 0;
  double work = 0;  // multiply-adds
};

Count count_items(const AttentionProblem& p, int64_t block_q) {
  Count n;
  if (p.heads_k == 0) return n;
  for_each_item(p, block_q, [&](const ForwardItem& item) {
    ++n.items;
    if (item.keys < 0) return;
    ++n.attending;
    n.work += static_cast<double>(item.count) * static_cast<double>(item.keys);
  });
  n.work *= static_cast<double>(p.heads_k * (p.head_dim + p.head_dim_v));
  return n;
}

// Q^T and O^T of a block within half of L2, taken for 1 or 2 MB, but at least 16 units: at S 2048, head_dim 128, one thread, 512 rows are
// 5% faster than 256, because K and V are read half as often. Tiles of AMX are done with K and V sooner: there four times as many.
int64_t choose_block_q(const AttentionProblem& p, int64_t element, bool tiles) {
  constexpr int64_t kLargest = 512, kSmallest = 64, kBytes = 512 << 10, kUnits = 16;
  const int64_t larger = tiles ? 4 : has_large_l2() ? 2 : 1, bytes_here = kBytes * larger;
  int64_t rows = kLargest * larger;
  const int64_t sequences = p.batch * p.heads_k, longest = p.q_seqs.longest * p.group;
  while (rows > kSmallest && (rows * (p.head_dim + p.head_dim_v) * element > bytes_here || sequences * ceil_div(longest, rows) < kUnits))
    rows /= 2;
  return rows;
}

// Keys of a tile for AMX: as many as L2 has room for, since a tile costs every panel of rows a pass over O. Few rows, and parts of the
// range of keys, want smaller ones; rows that an operation makes are made for 256.
int64_t choose_tile_keys(const AttentionProblem& p, const Config& config, int64_t parts, bool made) {
  constexpr int64_t kMade = 256, kFew = 512, kLargest = 2048, kBytes = 1344 << 10;
  if (made) return kMade;
  if (p.q_seqs.longest * p.group <= kFew || config.num_splits > 1) return kFew;
  int64_t keys = kLargest;
  while (keys > kFew && keys * (p.head_dim + p.head_dim_v) * 2 * parts > kBytes) keys /= 2;
  return keys;
}

// A tile of K and V within a fifth of L2. At head_dim 128, 144 keys are 1% faster than 96 and as fast as 240.
int64_t choose_block_k(const AttentionProblem& p, int64_t element) {
  constexpr int64_t kLargest = 144, kStep = 48, kBytes = 200 << 10;
  int64_t keys = kLargest;
  while (keys > kStep && keys * (p.head_dim + p.head_dim_v) * element > kBytes) keys -= kStep;
  return keys;
}

// The whole range of keys of a problem with few query rows is cut so that 32 units exist, each of at least 1024 keys; from
// shapes alone, so that the bits do not depend on threads.
int64_t choose_splits(const AttentionProblem& p, int64_t block_q, int64_t block_k) {
  constexpr int64_t kUnits = 32, kKeys = 1024, kRows = 64;
  const int64_t rows = p.q_seqs.longest * p.group;
  if (rows == 0 || rows > std::min(kRows, block_q)) return 1;
  const int64_t units = std::max<int64_t>(1, p.batch * p.heads_k), keys = p.k_seqs.longest;
  return std::clamp<int64_t>(std::min(ceil_div(kUnits, units), keys / std::max(kKeys, block_k)), 1, kUnits);
}

struct Run {
  const ForwardIsa& isa;
  const AttentionProblem& p;
  const Plan& plan;
  ForwardLayout layout;
  char* base;
  const ForwardItem* items;
  int64_t item_count, attending;
  const UnitHooks* hooks;

  int64_t out_bytes() const {
    const auto& shape = p.out.shape;
    return shape[0] * shape[1] * shape[2] * shape[3] * static_cast<int64_t>(size_of(p.dtype));
  }
  int accumulator() const { return p.dtype == DType::f64 ? 1 : 0; }
  BlockState state_at(char* at) const { return {at + layout.max, at + layout.sum, at + layout.out}; }
  BlockState part(int64_t unit, int64_t split) const {
    return state_at(base + layout.parts + (unit * plan.num_splits + split) * layout.state_bytes);
  }

  // Rows of the block, padded to whole vectors with copies of the last; they begin from the sinks in the first split only.
  void fill_rows(const ForwardItem& item, int64_t hk, int64_t split, QueryRow* rows) const {
    const int64_t b = item.sequence, q_batch = p.q_seqs.batch_index(b), q_first = p.q_seqs.first_row(b);
    const Mask mask = p.mask(b);
    int64_t i = item.first / p.group, g = item.first % p.group;
    Range keys = mask.keys(i, i + 1);
    for (int64_t r = 0; r < item.count; ++r) {
      const int64_t h = hk * p.group + g;
      QueryRow& row = rows[r];
      row.q = p.q.at(q_batch, q_first + i, h);
      row.out = p.out.at(q_batch, q_first + i, h);
      row.lse = p.lse ? p.lse.at(q_batch, h, q_first + i) : nullptr;
      row.bias = p.bias ? p.bias.at(b, h, i) : nullptr;
      row.mask = p.attention_mask ? p.attention_mask.at(b, h, i) : nullptr;
      row.key_begin = keys.begin;
      row.key_end = keys.end;
      row.segment = p.q_ids ? read_index(p.q_ids.dtype, p.q_ids.at(0, 0, q_batch, q_first + i)) : 0;
      row.sink_max = -std::numeric_limits<double>::infinity();
      row.sink_sum = 0;
      if (p.sinks && split == 0) {
        if (r < p.group) {
          read_sinks(p, h, row);
        } else {
          row.sink_max = rows[r - p.group].sink_max;
          row.sink_sum = rows[r - p.group].sink_sum;
        }
      }
      row.philox_query = static_cast<uint32_t>(((i >> 4) << 3) | (i & 7));
      row.philox_head = static_cast<uint32_t>(h);
      row.philox_word = static_cast<uint32_t>(2 * ((i >> 3) & 1));
      if (++g == p.group) {
        g = 0;
        ++i;
        keys = mask.keys(i, i + 1);
      }
    }
    const int64_t padded = ceil_div(item.count, layout.lanes) * layout.lanes;
    for (int64_t r = item.count; r < padded; ++r) rows[r] = rows[item.count - 1];
  }

  Unit make_unit(const ForwardItem& item, int64_t hk, int64_t split, int worker) const {
    const int64_t b = item.sequence, k_batch = p.k_seqs.batch_index(b), k_first = p.k_seqs.first_row(b);
    char* own = base + layout.workers + worker * layout.worker_bytes;
    QueryRow* rows = reinterpret_cast<QueryRow*>(own + layout.queries);
    fill_rows(item, hk, split, rows);

    Unit u{};
    u.rows = rows;
    u.count = item.count;
    u.head_dim = p.head_dim;
    u.head_dim_v = p.head_dim_v;
    u.dtype = p.dtype;
    const auto bytes = [](DType t) { return static_cast<int64_t>(size_of(t)); };
    if (p.page_table) {
      u.k = p.k.at(0, 0, hk);
      u.v = p.v.at(0, 0, hk);
      const View& table = p.page_table;
      u.pages = {table.at(0, 0, b), table.dtype, table.stride[3] * bytes(table.dtype), p.page_size(), p.k.stride[0] * bytes(p.dtype),
                 p.v.stride[0] * bytes(p.dtype)};
    } else {
      u.k = p.k.at(k_batch, k_first, hk);
      u.v = p.v.at(k_batch, k_first, hk);
    }
    u.k_stride = p.k.stride[1] * bytes(p.dtype);
    u.v_stride = p.v.stride[1] * bytes(p.dtype);
    const Range keys = p.mask(b).keys(item.first / p.group, (item.first + item.count - 1) / p.group + 1);
    const int64_t share = ceil_div(ceil_div(keys.end - keys.begin, plan.num_splits), plan.block_k) * plan.block_k;
    u.key_begin = std::min(keys.end, keys.begin + split * share);
    u.key_end = std::min(keys.end, u.key_begin + share);
    u.block_k = plan.block_k;
    u.k_rows = layout.k_rows;
    u.v_row = layout.v_row;
    u.keys_ahead = hooks == nullptr && has_large_l2();
    u.out_is_large = hooks == nullptr && out_bytes() > kLargeOut;

    u.softmax_scale = p.softmax_scale;
    u.softcap = p.has(kSoftcap) ? p.softcap : 0;
    u.logits_dtype = p.has(kLogitsDtype) ? p.logits_dtype : DType::none;
    u.bias_dtype = p.bias.dtype;
    u.bias_stride = p.bias.stride[3] * bytes(p.bias.dtype);
    u.mask_bytes = static_cast<int32_t>(bytes(p.attention_mask.dtype));
    u.mask_stride = p.attention_mask.stride[3] * bytes(p.attention_mask.dtype);
    u.key_ids = p.k_ids ? p.k_ids.at(0, 0, k_batch, k_first) : nullptr;
    u.key_ids_dtype = p.k_ids.dtype;
    u.key_ids_stride = p.k_ids.stride[3] * bytes(p.k_ids.dtype);
    u.dropout = p.has(kDropout);
    u.dropout_seed = p.dropout.seed;
    u.dropout_threshold = p.dropout.threshold;
    u.dropout_sequence = static_cast<uint32_t>(b);
    u.dropout_scale = p.dropout.scale;
    u.normalize = !p.has(kUnnormalized);

    u.scratch = {own + layout.q, own + layout.k, own + layout.v, own + layout.scores, reinterpret_cast<int64_t*>(own + layout.ids),
                 own + layout.probabilities, own + layout.tops, own + layout.bias};
    u.state = state_at(own + layout.state);
    return u;
  }

  void clear(const ForwardItem& item) const {
    for (int64_t t = item.first; t < item.first + item.count; ++t) {
      for (int64_t h = 0; h < p.heads_q; ++h) {
        std::memset(p.out.at(item.sequence, t, h), 0, p.out.shape[3] * size_of(p.dtype));
        if (p.lse) write_floating(p.lse.dtype, p.lse.at(item.sequence, h, t), -std::numeric_limits<double>::infinity());
      }
    }
  }

  // Unit `index` of item and key head, with what the hooks add to it.
  UnitCall hooked(UnitStage stage, Unit& u, int64_t index, int worker) const {
    char* own = base + layout.workers + worker * layout.worker_bytes;
    const int64_t place = plan.num_splits > 1 ? index : worker;
    return {stage,
            u,
            reinterpret_cast<QueryRow*>(own + layout.queries),
            ceil_div(u.count, layout.lanes) * layout.lanes,
            plan.block_q,
            items[index / p.heads_k],
            index % p.heads_k,
            base + layout.hook_units + place * hooks->unit_bytes(plan),
            base + layout.hook_workers + worker * hooks->worker_bytes(plan)};
  }

  void prepare(int64_t index, int worker) const {
    const FlushDenormals mode;
    Unit u = make_unit(items[index / p.heads_k], index % p.heads_k, 0, worker);
    hooks->begin(hooked(UnitStage::prepare, u, index, worker));
  }

  // Index: item by item, for the attending ones key head by key head and split by split.
  void attend(int64_t index, int worker) const {
    const FlushDenormals mode;
    const int64_t per_item = p.heads_k * plan.num_splits;
    if (index >= attending * per_item) return clear(items[attending + index - attending * per_item]);
    const int64_t item = index / per_item, hk = index / plan.num_splits % p.heads_k, split = index % plan.num_splits;
    Unit u = make_unit(items[item], hk, split, worker);
    const bool whole = plan.num_splits == 1;
    const int64_t unit = item * p.heads_k + hk;
    if (!whole) u.state = part(unit, split);
    if (hooks) hooks->begin(hooked(whole ? UnitStage::whole : UnitStage::part, u, unit, worker));
    isa.attend[accumulator()](u, whole);
    if (hooks && whole) hooks->end(hooked(UnitStage::whole, u, unit, worker));
  }

  void join(int64_t index, int worker) const {
    const FlushDenormals mode;
    Unit u = make_unit(items[index / p.heads_k], index % p.heads_k, 0, worker);
    BlockState parts[Config::kMaxSplits];
    for (int64_t s = 0; s < plan.num_splits; ++s) parts[s] = part(index, s);
    if (hooks) hooks->begin(hooked(UnitStage::join, u, index, worker));
    isa.join[accumulator()](u, parts, plan.num_splits);
    if (hooks) hooks->end(hooked(UnitStage::join, u, index, worker));
  }
};

ForwardLayout layout_of(const ForwardIsa& isa, const AttentionProblem& p, const Plan& plan, int64_t items, int64_t parts,
                        const UnitHooks* hooks) {
  const int64_t units = parts > 0 ? parts / plan.num_splits : plan.workers;
  const size_t units_bytes = hooks ? units * hooks->unit_bytes(plan) : 0, workers_bytes = hooks ? plan.workers * hooks->worker_bytes(plan) : 0;
  return {isa, p, plan.block_q, plan.block_k, items, parts, plan.workers, units_bytes, workers_bytes};
}

}  // namespace

std::string forward_why_not(const AttentionProblem& problem, const Config&) {
  if (problem.dtype == DType::f8e4m3) return "float8_e4m3 runs on CUDA only";
  if (problem.dtype > DType::bf16) return "takes float64, float32, float16 and bfloat16 only";
  return "";
}

Plan plan_forward(const ForwardIsa& isa, const AttentionProblem& p, const Config& config, int threads, const UnitHooks* hooks) {
  const int64_t element = p.dtype == DType::f64 ? 8 : 4, lanes = isa.vector_bytes / element;
  Plan plan;

  plan.block_q = config.block_q ? config.block_q : choose_block_q(p, element, isa.tile_parts > 0);
  const int64_t longest = std::max<int64_t>(1, p.q_seqs.longest * p.group);
  plan.block_q = ceil_div(std::min(plan.block_q, longest), lanes) * lanes;
  plan.block_k = config.block_k         ? config.block_k
                 : isa.tile_parts > 0 ? choose_tile_keys(p, config, isa.tile_parts, hooks != nullptr)
                                      : choose_block_k(p, element);
  plan.block_k = ceil_div(std::min(plan.block_k, std::max<int64_t>(1, p.k_seqs.longest)), isa.block_step) * isa.block_step;
  const int64_t tiles = std::max<int64_t>(1, ceil_div(p.k_seqs.longest, plan.block_k));
  plan.num_splits = config.num_splits ? std::min(config.num_splits, tiles) : choose_splits(p, plan.block_q, plan.block_k);

  // Waking a thread costs 3 us: about as much as this many multiply-adds.
  constexpr double kSerialWork = 3e5;
  const Count n = count_items(p, plan.block_q);
  const int64_t units = n.attending * p.heads_k * plan.num_splits + (n.items - n.attending);
  plan.workers = n.work < kSerialWork ? 1 : static_cast<int>(std::clamp<int64_t>(units, 1, std::max(1, threads)));
  const int64_t parts = plan.num_splits > 1 ? n.attending * p.heads_k * plan.num_splits : 0;
  plan.workspace_bytes = layout_of(isa, p, plan, n.items, parts, hooks).total;
  return plan;
}

void run_forward(const ForwardIsa& isa, const AttentionProblem& p, const Plan& plan, void* workspace, const attile_executor* executor,
                 const UnitHooks* hooks) {
  const Count n = count_items(p, plan.block_q);
  if (n.items == 0) return;
  const int64_t parts = plan.num_splits > 1 ? n.attending * p.heads_k * plan.num_splits : 0;
  const ForwardLayout layout = layout_of(isa, p, plan, n.items, parts, hooks);
  char* base = static_cast<char*>(workspace) + (-reinterpret_cast<uintptr_t>(workspace) & 63);

  // Longest first; what is to be cleared comes last.
  ForwardItem* items = reinterpret_cast<ForwardItem*>(base + layout.items);
  ForwardItem* end = items;
  for_each_item(p, plan.block_q, [&](const ForwardItem& item) { *end++ = item; });
  std::sort(items, end, [](const ForwardItem& a, const ForwardItem& b) {
    if (a.keys != b.keys) return a.keys > b.keys;
    return a.sequence != b.sequence ? a.sequence < b.sequence : a.first < b.first;
  });

  const Run run{isa, p, plan, layout, base, items, n.items, n.attending, hooks};
  const int64_t units = n.attending * p.heads_k * plan.num_splits + (n.items - n.attending);
  if (hooks && plan.num_splits > 1)
    parallel_for(executor, n.attending * p.heads_k, plan.workers, [&](int64_t index, int worker) { run.prepare(index, worker); });
  parallel_for(executor, units, plan.workers, [&](int64_t index, int worker) { run.attend(index, worker); });
  if (plan.num_splits > 1)
    parallel_for(executor, n.attending * p.heads_k, plan.workers, [&](int64_t index, int worker) { run.join(index, worker); });
}

}  // namespace attile
