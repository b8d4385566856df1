// mla_decode_generic_sm80: which instance, how many tiles in flight, which grid, which parameters.
#include "cuda/mla_decode/generic/decode_launch.hpp"

#include <algorithm>

#include "core/mla_decode_problem.hpp"
#include "cuda/device.hpp"
#include "cuda/generic/problem_params.hpp"
#include "cuda/mla_decode/generic/decode_instances.hpp"

namespace attile::cuda {
namespace {

using namespace latent;

constexpr uint64_t kHonours = kSinks | kCausal | kSoftcap | kVarlenQ | kLse | kKvLens | kPages | kFloat8Scales;
constexpr int64_t kMaxSplits = 64;
constexpr int kMaxStages = 5;
constexpr int kOwnShared = 256;  // static shared memory of the kernels, and more

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::span<const DecodeInstance> instances_of(DType dtype) {
  if (dtype == DType::bf16) return decode_bf16();
  if (dtype == DType::f16) return decode_f16();
  return decode_f32();
}

Layout layout_of(const MlaDecodeProblem& p, const DecodeInstance& instance, int stages) {
  return instance.layout(static_cast<int>(p.latent), static_cast<int>(p.rope), p.head_rope, stages);
}

// As many stages as fit; 0: not even one does.
Layout largest_layout(const MlaDecodeProblem& p, const DecodeInstance& instance, int shared) {
  for (int stages = kMaxStages; stages > 0; --stages)
    if (const Layout l = layout_of(p, instance, stages); l.bytes + kOwnShared <= shared) return l;
  return {};
}

struct Choice {
  const DecodeInstance* instance = nullptr;
  Layout layout{};
};

// The smallest tile that holds the rows of a sequence, or the largest that leaves room for two stages; else what runs at all.
Choice choose_instance(const MlaDecodeProblem& p, const Config& config) {
  const int shared = device(p.device_id).shared_bytes;
  const int64_t rows = p.q_seqs.longest * p.group;
  Choice best;
  for (const DecodeInstance& i : instances_of(p.dtype)) {
    if (config.block_q != 0 && config.block_q != i.tile_m) continue;
    const Layout l = largest_layout(p, i, shared);
    if (l.stages == 0 || (best.instance && l.stages < 2)) break;
    best = {&i, l};
    if (rows <= i.tile_m) break;
  }
  return best;
}

struct Grid {
  int64_t tiles = 0, units = 0;  // units: blocks without splits
};

Grid grid_of(const MlaDecodeProblem& p, const DecodeInstance& instance) {
  Grid g;
  const Sequences& q = p.q_seqs;
  if (p.group == 0) return g;
  // Packed: as many tiles as any lengths of this total may need, and one for the rows past the last sequence.
  g.tiles = q.packed ? q.rows * p.group / instance.tile_m + p.batch + 1 : ceil_div(q.rows * p.group, instance.tile_m);
  if (q.packed && q.rows == 0) g.tiles = 0;
  g.units = g.tiles * (q.packed ? 1 : p.batch);
  return g;
}

std::string why_not(const AttentionProblem& problem, const Config& config) {
  const MlaDecodeProblem& p = mla_decode(problem);
  if (p.dtype != DType::bf16 && p.dtype != DType::f16 && p.dtype != DType::f32)
    return std::string("takes float32, float16 and bfloat16 only: got ") + info(p.dtype).name;
  if (std::string missing = lacks(p.device_id, 8, 0); !missing.empty()) return missing;
  const auto sizes = [&] {
    std::string list;
    for (const DecodeInstance& i : instances_of(p.dtype)) list += (list.empty() ? "" : ", ") + std::to_string(i.tile_m);
    return list;
  };
  const DecodeInstance& first = instances_of(p.dtype)[0];
  if (config.block_k != 0 && config.block_k != first.tile_n)
    return "cfg.block_k must be " + std::to_string(first.tile_n) + ": got " + std::to_string(config.block_k);
  if (!choose_instance(p, config).instance) {
    if (config.block_q != 0)
      return "cfg.block_q must be one of " + sizes() + " and fit the GPU's shared memory: got " + std::to_string(config.block_q);
    return "needs " + std::to_string(layout_of(p, first, 1).bytes + kOwnShared) + " bytes of shared memory a block, the GPU has " +
           std::to_string(device(p.device_id).shared_bytes);
  }
  if (config.num_splits < 0 || config.num_splits > kMaxSplits)
    return "num_splits must be at most " + std::to_string(kMaxSplits) + ": got " + std::to_string(config.num_splits);
  constexpr int64_t kMost = generic::ForwardParams::kUnlimited;
  if (p.q_seqs.rows * p.group >= kMost || p.k_seqs.rows >= kMost) return "takes fewer than 2^30 tokens";
  if (grid_of(p, first).units * kMaxSplits * first.tile_m >= int64_t{1} << 31) return "takes fewer than 2^31 blocks";
  return "";
}

// Blocks that the GPU runs at once.
int64_t places_of(const AttentionProblem& p, const Choice& c) {
  const CudaDevice& d = device(p.device_id);
  return int64_t{d.multiprocessors} * std::clamp(d.shared_bytes / (c.layout.bytes + kOwnShared), 1, c.instance->blocks);
}

// The fewest that come close to the shortest time, counted in the time of a whole sequence: rounds of blocks, each a share of the keys
// and the start of a block. A split has at least four tiles of what the longest sequence may have.
int64_t choose_splits(const MlaDecodeProblem& p, const Choice& c, const Grid& g) {
  constexpr double kStart = 6;  // in tiles
  const int64_t batch = std::max<int64_t>(1, p.batch);
  // Of pages in one list the sum is known, of packed queries too: sequences are taken for twice the mean, and for equal in queries, as the
  // blocks beyond have no rows.
  const int64_t longest = p.page_begin ? std::min(p.k_seqs.longest, 2 * p.page_table.shape[3] * p.page_size() / batch + 1) : p.k_seqs.longest;
  const int64_t tiles = ceil_div(longest, c.instance->tile_n);
  const int64_t equal = p.batch * ceil_div(p.q_seqs.rows * p.group, batch * c.instance->tile_m);
  const int64_t units = std::max<int64_t>(1, p.q_seqs.packed ? std::min(g.units, equal) : g.units);
  int64_t best = 1;
  double least = 0;
  for (int64_t splits = 1; splits <= std::clamp<int64_t>(tiles / 4, 1, kMaxSplits); ++splits) {
    const double time = static_cast<double>(ceil_div(units * splits, places_of(p, c))) * (static_cast<double>(ceil_div(tiles, splits)) + kStart);
    if (splits == 1 || time < 0.97 * least) best = splits, least = time;
  }
  return best;
}

Plan plan(const AttentionProblem& problem, const Config& config, int) {
  const MlaDecodeProblem& p = mla_decode(problem);
  const Choice c = choose_instance(p, config);
  const Grid g = grid_of(p, *c.instance);
  Plan plan;
  plan.block_q = c.instance->tile_m;
  plan.block_k = c.instance->tile_n;
  plan.num_splits = config.num_splits ? std::min(config.num_splits, std::max<int64_t>(1, ceil_div(p.k_seqs.longest, plan.block_k)))
                                      : choose_splits(p, c, g);
  if (plan.num_splits > 1)
    plan.workspace_bytes = static_cast<size_t>(g.units * plan.num_splits * plan.block_q * (p.latent + 2)) * sizeof(float);
  return plan;
}

void run(const AttentionProblem& problem, const Plan& plan, void* workspace, const Execution& execution) {
  const MlaDecodeProblem& p = mla_decode(problem);
  Config config;
  config.block_q = plan.block_q;
  const Choice c = choose_instance(p, config);
  const Grid g = grid_of(p, *c.instance);
  if (g.units == 0) return;
  DecodeParams d{};
  static_cast<generic::ForwardParams&>(d) = generic::problem_params(p);
  d.tiles = static_cast<int32_t>(g.tiles);
  d.column_parts = 1;
  d.splits = static_cast<int32_t>(plan.num_splits);
  d.parts = static_cast<float*>(workspace);
  d.q_pe = generic::tensor_of(p.q_pe);
  d.kpe = generic::tensor_of(p.kpe);
  d.rope = static_cast<int32_t>(p.rope);
  d.head_rope = p.head_rope;
  d.page_begin = generic::indices_of(p.page_begin);
  d.page_entries = p.page_table.shape[3];
  d.latent8 = p.k.dtype == DType::f8e4m3;
  d.ckv_scale = static_cast<float>(p.ckv_scale);
  d.lse_scale = static_cast<float>(p.lse_scale);
  d.layout = c.layout;
  c.instance->launch(d, g.units * plan.num_splits, execution.stream);
  if (plan.num_splits > 1) c.instance->join(d, g.units, execution.stream);
}

bool available() { return some_device_has(8, 0); }

constexpr Kernel kKernels[] = {{"mla_decode_generic_sm80", "sm80", kHonours, available, why_not, plan, run}};

}  // namespace

std::span<const Kernel> generic_mla_decode_kernels() { return kKernels; }

}  // namespace attile::cuda
