// forward_generic_sm80: which instance, which grid, which parameters.
#include "cuda/generic/forward_launch.hpp"

#include <algorithm>
#include <cmath>

#include "cuda/device.hpp"
#include "cuda/generic/forward_instances.hpp"

namespace attile::cuda {
namespace {

using namespace generic;

constexpr uint64_t kPlainOptions = kCausal | kWindow | kVarlenQ | kVarlenK | kKvLens | kLse | kReducedPrecision;
constexpr uint64_t kGeneralOptions = kBias | kAttentionMask | kSegmentIds | kSinks | kSoftcap | kDropout | kUnnormalized | kLogitsDtype | kPages;
constexpr int64_t kMaxSplits = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The maximum of scores before they are scaled is that of the scaled ones for a positive scale only.
bool needs_general(const AttentionProblem& p) { return (p.options & kGeneralOptions) != 0 || !(p.softmax_scale > 0); }

const ForwardInstance* find_instance(const AttentionProblem& p) {
  std::span<const ForwardInstance> by_dim[4];
  if (p.dtype == DType::bf16) {
    by_dim[0] = forward_bf16_64(), by_dim[1] = forward_bf16_128(), by_dim[2] = forward_bf16_256(), by_dim[3] = forward_bf16_512();
  } else if (p.dtype == DType::f16) {
    by_dim[0] = forward_f16_64(), by_dim[1] = forward_f16_128(), by_dim[2] = forward_f16_256(), by_dim[3] = forward_f16_512();
  } else {
    by_dim[0] = forward_f32_64(), by_dim[1] = forward_f32_128(), by_dim[2] = forward_f32_256(), by_dim[3] = forward_f32_512();
  }
  const bool general = needs_general(p);
  for (const auto& instances : by_dim)
    for (const ForwardInstance& i : instances)
      if (i.dim == 0 || (i.general == general && p.head_dim <= i.dim && p.head_dim_v <= i.dim_v)) return &i;
  return nullptr;
}

struct Grid {
  int64_t tiles = 0, column_parts = 1, units = 0;  // units: blocks without splits and column parts
};

Grid grid_of(const AttentionProblem& p, const ForwardInstance& instance) {
  Grid g;
  const Sequences& q = p.q_seqs;
  // Packed: as many tiles as any lengths of this total may need, and one for the rows past the last sequence.
  g.tiles = q.packed ? q.rows * p.group / instance.tile_m + p.batch + 1 : ceil_div(q.rows * p.group, instance.tile_m);
  if (q.packed && q.rows == 0) g.tiles = 0;
  g.column_parts = ceil_div(p.head_dim_v, instance.dim_v);
  g.units = g.tiles * p.heads_k * (q.packed ? 1 : p.batch);
  return g;
}

std::string why_not(const AttentionProblem& p, const Config& config) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16 && p.dtype != DType::f32)
    return std::string("takes float32, float16 and bfloat16 only: got ") + info(p.dtype).name;
  if (std::string missing = lacks(p.device_id, 8, 0); !missing.empty()) return missing;
  const ForwardInstance* instance = find_instance(p);
  const int shared = device(p.device_id).shared_bytes;
  if (instance->shared_bytes > shared)
    return "needs " + std::to_string(instance->shared_bytes) + " bytes of shared memory a block, the GPU has " + std::to_string(shared);
  const struct {
    const char* name;
    int64_t value, own;
  } tiles[] = {{"block_q", config.block_q, instance->tile_m}, {"block_k", config.block_k, instance->tile_n}};
  for (const auto& [name, value, own] : tiles)
    if (value != 0 && value != own)
      return std::string("cfg.") + name + " must be " + std::to_string(own) + " for these head dims and options: got " + std::to_string(value);
  if (config.num_splits < 0 || config.num_splits > kMaxSplits)
    return "cfg.num_splits must be at most " + std::to_string(kMaxSplits) + ": got " + std::to_string(config.num_splits);
  constexpr int64_t kMost = ForwardParams::kUnlimited;
  if (p.q_seqs.rows * p.group >= kMost || p.k_seqs.rows >= kMost) return "takes fewer than 2^30 tokens";
  const Grid g = grid_of(p, *instance);
  if (g.units * g.column_parts * kMaxSplits >= int64_t{1} << 31) return "takes fewer than 2^31 blocks";
  return "";
}

// A GPU has work for some 256 blocks; a split has at least 4 tiles of keys.
int64_t choose_splits(const AttentionProblem& p, const ForwardInstance& instance, const Grid& g) {
  constexpr int64_t kBlocks = 256, kTiles = 4;
  const int64_t blocks = std::max<int64_t>(1, g.units * g.column_parts), tiles = ceil_div(p.k_seqs.longest, instance.tile_n);
  return std::clamp<int64_t>(std::min(kBlocks / blocks, tiles / kTiles), 1, kMaxSplits);
}

Plan plan(const AttentionProblem& p, const Config& config, int) {
  const ForwardInstance& instance = *find_instance(p);
  const Grid g = grid_of(p, instance);
  Plan plan;
  plan.block_q = instance.tile_m;
  plan.block_k = instance.tile_n;
  plan.num_splits = config.num_splits ? std::min(config.num_splits, std::max<int64_t>(1, ceil_div(p.k_seqs.longest, instance.tile_n)))
                                      : choose_splits(p, instance, g);
  if (plan.num_splits > 1) plan.workspace_bytes = static_cast<size_t>(g.units * plan.num_splits * instance.tile_m * (p.head_dim_v + 2)) * sizeof(float);
  return plan;
}

int64_t bytes_of(DType t) { return static_cast<int64_t>(size_of(t)); }

int32_t granule_of(const View& v) {
  uint64_t bits = reinterpret_cast<uintptr_t>(v.data) | 16;
  for (int i = 0; i < 3; ++i)
    if (v.shape[i] > 1) bits |= static_cast<uint64_t>(v.stride[i] * bytes_of(v.dtype));
  const int32_t granule = static_cast<int32_t>(bits & -bits);
  return granule == 8 ? 4 : granule;
}

Tensor tensor_of(const View& v) {
  const int64_t size = bytes_of(v.dtype);
  return {v.data, v.stride[0] * size, v.stride[1] * size, v.stride[2] * size, granule_of(v)};
}

Indices indices_of(const IndexView& v) {
  return {v.data, v.stride * bytes_of(v.dtype), v.dtype == DType::i64};
}

Lengths lengths_of(const Sequences& s) {
  return {indices_of(s.cu), indices_of(s.lens), static_cast<int32_t>(s.rows), s.packed};
}

Elementwise elementwise_of(const View& v, int64_t size_of_pairs) {
  const int64_t size = bytes_of(v.dtype);
  Elementwise e{v.data, v.stride[0] * size, v.stride[1] * size, v.stride[2] * size, v.stride[3] * size, v.dtype, false};
  uint64_t bits = reinterpret_cast<uintptr_t>(v.data);
  for (int i = 0; i < 3; ++i) bits |= static_cast<uint64_t>(v.stride[i] * size);
  e.pairs = size == size_of_pairs && v.stride[3] == 1 && bits % static_cast<uint64_t>(2 * size) == 0;
  return e;
}

Ids ids_of(const View& v) {
  const int64_t size = bytes_of(v.dtype);
  return {v.data, v.stride[2] * size, v.stride[3] * size, v.dtype == DType::i64};
}

int32_t band_side(int64_t side) { return static_cast<int32_t>(std::min<int64_t>(side, ForwardParams::kUnlimited)); }

ForwardParams params_of(const AttentionProblem& p, const Plan& plan, const Grid& g, void* workspace) {
  ForwardParams f{};
  f.q = tensor_of(p.q);
  f.k = tensor_of(p.k);
  f.v = tensor_of(p.v);
  f.out = tensor_of(p.out);
  if (p.lse) {
    f.lse = reinterpret_cast<float*>(p.lse.data);
    f.lse_batch = p.lse.stride[0], f.lse_head = p.lse.stride[1], f.lse_row = p.lse.stride[2];
  }
  f.q_lengths = lengths_of(p.q_seqs);
  f.k_lengths = lengths_of(p.k_seqs);
  f.batch = static_cast<int32_t>(p.batch);
  f.heads_k = static_cast<int32_t>(p.heads_k);
  f.group = static_cast<int32_t>(p.group);
  f.head_dim = static_cast<int32_t>(p.head_dim);
  f.head_dim_v = static_cast<int32_t>(p.head_dim_v);
  if (p.has(kPages)) {
    f.pages = {p.page_table.data, p.page_table.stride[3] * bytes_of(p.page_table.dtype), p.page_table.dtype == DType::i64};
    f.pages_batch = p.page_table.stride[2] * bytes_of(p.page_table.dtype);
    f.page_size = static_cast<int32_t>(p.page_size());
    f.page_count = static_cast<int32_t>(p.k.shape[0]);
  }
  f.scale = static_cast<float>(p.softmax_scale);
  f.scale_log2 = static_cast<float>(p.softmax_scale * 1.4426950408889634);
  f.left = band_side(p.window_left);
  f.right = p.causal ? 0 : band_side(p.window_right);
  f.bottom_right = p.alignment == Alignment::bottom_right;
  f.exact = p.dtype == DType::f32 && p.precision != ATTILE_PRECISION_DEFAULT;
  f.tiles = static_cast<int32_t>(g.tiles);
  f.column_parts = static_cast<int32_t>(g.column_parts);
  f.splits = static_cast<int32_t>(plan.num_splits);
  f.batch_first = p.bias && p.bias.stride[0] == 0 && p.batch > 1 && !p.q_seqs.packed;
  f.parts = static_cast<float*>(workspace);
  if (p.has(kBias)) f.bias = elementwise_of(p.bias, 2);
  if (p.has(kAttentionMask)) f.mask = elementwise_of(p.attention_mask, 1);
  if (p.has(kSegmentIds)) {
    f.q_ids = ids_of(p.q_ids);
    f.k_ids = ids_of(p.k_ids);
  }
  if (p.has(kSinks)) {
    f.sinks = p.sinks.data;
    f.sink_head = p.sinks.stride[2] * bytes_of(p.sinks.dtype);
    f.sink_next = p.sinks.stride[3] * bytes_of(p.sinks.dtype);
    f.sink_dtype = p.sinks.dtype;
    f.sink_count = static_cast<int32_t>(p.sinks.shape[3]);
  }
  f.softcap = p.has(kSoftcap) ? static_cast<float>(p.softcap) : 0.f;
  f.logits_dtype = p.has(kLogitsDtype) ? p.logits_dtype : DType::none;
  f.dropout = p.has(kDropout);
  f.unnormalized = p.has(kUnnormalized);
  f.dropout_seed = p.dropout.seed;
  f.dropout_threshold = p.dropout.threshold;
  f.dropout_scale = f.dropout ? static_cast<float>(p.dropout.scale) : 1.f;
  return f;
}

void run(const AttentionProblem& p, const Plan& plan, void* workspace, const Execution& execution) {
  const ForwardInstance& instance = *find_instance(p);
  const Grid g = grid_of(p, instance);
  if (g.units == 0) return;
  const ForwardParams params = params_of(p, plan, g, workspace);
  instance.launch(params, g.units * g.column_parts * plan.num_splits, execution.stream);
  if (plan.num_splits > 1) join_splits(p.dtype, params, instance, g.units, execution.stream);
}

bool available() { return some_device_has(8, 0); }

constexpr Kernel kKernels[] = {{"forward_generic_sm80", "sm80", kPlainOptions | kGeneralOptions, available, why_not, plan, run}};

}  // namespace

std::span<const Kernel> generic_forward_kernels() { return kKernels; }

}  // namespace attile::cuda
