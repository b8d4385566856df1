// forward_generic_sm80: which instance, which grid, which parameters.
#include "cuda/generic/forward_launch.hpp"

#include <algorithm>
#include <limits>

#include "cuda/device.hpp"
#include "cuda/generic/forward_instances.hpp"
#include "cuda/generic/problem_params.hpp"

namespace attile::cuda {
namespace {

using namespace generic;

constexpr uint64_t kPlainOptions = kCausal | kWindow | kVarlenQ | kVarlenK | kKvLens | kLse | kReducedPrecision;
constexpr uint64_t kGeneralOptions =
    kBias | kAttentionMask | kSegmentIds | kSinks | kSoftcap | kDropout | kUnnormalized | kLogitsDtype | kPages;
constexpr int64_t kMaxSplits = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The maximum of scores before they are scaled is that of the scaled ones for a positive scale only, and -inf times one that float32 does not
// have is no number.
bool needs_general(const AttentionProblem& p) {
  return (p.options & kGeneralOptions) != 0 || !(p.softmax_scale >= std::numeric_limits<float>::min());
}

// A bias that the biased kernels take: eight keys of a row are sixteen bytes, which exist together.
bool is_simple(const AttentionProblem& p) {
  if ((p.options & kGeneralOptions) != kBias || p.bias.dtype != p.dtype || p.group != 1) return false;
  const ForwardParams f = problem_params(p);
  return f.bias.pairs && f.bias.granule == 16 && p.bias.shape[3] % 8 == 0;
}

const ForwardInstance* find_instance(const AttentionProblem& p) {
  std::span<const ForwardInstance> by_dim[4];
  if (p.dtype == DType::bf16) {
    by_dim[0] = forward_bf16_64(), by_dim[1] = forward_bf16_128(), by_dim[2] = forward_bf16_256(), by_dim[3] = forward_bf16_512();
  } else if (p.dtype == DType::f16) {
    by_dim[0] = forward_f16_64(), by_dim[1] = forward_f16_128(), by_dim[2] = forward_f16_256(), by_dim[3] = forward_f16_512();
  } else {
    by_dim[0] = forward_f32_64(), by_dim[1] = forward_f32_128(), by_dim[2] = forward_f32_256(), by_dim[3] = forward_f32_512();
  }
  const Variant least = !needs_general(p) ? Variant::plain : is_simple(p) ? Variant::biased : Variant::general;
  for (const auto& instances : by_dim)
    for (const ForwardInstance& i : instances)
      if (i.dim == 0 ||
          (i.variant >= least && (least > Variant::plain || i.variant == least) && p.head_dim <= i.dim && p.head_dim_v <= i.dim_v))
        return &i;
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
      return std::string("cfg.") + name + " must be " + std::to_string(own) + " for these head dims and options: got " +
             std::to_string(value);
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
  if (plan.num_splits > 1)
    plan.workspace_bytes = static_cast<size_t>(g.units * plan.num_splits * instance.tile_m * (p.head_dim_v + 2)) * sizeof(float);
  return plan;
}

ForwardParams params_of(const AttentionProblem& p, const ForwardInstance& instance, const Plan& plan, const Grid& g, void* workspace) {
  ForwardParams f = problem_params(p);
  f.scale_log2 = static_cast<float>((instance.variant == Variant::plain ? p.softmax_scale : 1) * 1.4426950408889634);
  f.tiles = static_cast<int32_t>(g.tiles);
  f.column_parts = static_cast<int32_t>(g.column_parts);
  f.splits = static_cast<int32_t>(plan.num_splits);
  f.batch_first = p.bias && p.bias.stride[0] == 0 && p.batch > 1 && !p.q_seqs.packed;
  f.parts = static_cast<float*>(workspace);
  return f;
}

void run(const AttentionProblem& p, const Plan& plan, void* workspace, const Execution& execution) {
  const ForwardInstance& instance = *find_instance(p);
  const Grid g = grid_of(p, instance);
  if (g.units == 0) return;
  const ForwardParams params = params_of(p, instance, plan, g, workspace);
  instance.launch(params, g.units * g.column_parts * plan.num_splits, execution.stream);
  if (plan.num_splits > 1) join_splits(p.dtype, params, instance, g.units, execution.stream);
}

bool available() { return some_device_has(8, 0); }

constexpr Kernel kKernels[] = {{"forward_generic_sm80", "sm80", kPlainOptions | kGeneralOptions, available, why_not, plan, run}};

}  // namespace

std::span<const Kernel> generic_forward_kernels() { return kKernels; }

}  // namespace attile::cuda
