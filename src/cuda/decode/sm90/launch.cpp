// decode_sm90: what it takes, which instance, how much workspace, which parameters.
#include "cuda/decode/sm90/launch.hpp"

#include <algorithm>
#include <numeric>
#include <string>

#include "cuda/decode/sm90/instances.hpp"
#include "cuda/device.hpp"
#include "cuda/forward/sm90/tensor_maps.hpp"
#include "cuda/generic/problem_params.hpp"

namespace attile::cuda {
namespace {

using namespace decode_sm90;

constexpr uint64_t kHonoured = kCausal | kWindow | kSinks | kSoftcap | kKvLens | kPages | kLse | kReducedPrecision;
constexpr int64_t kMostRows = 64, kManyRows = 32, kManyKeys = 1024;
constexpr int64_t kLarge = 16;  // caches of so many times the size of L2 are read faster without evict_first
constexpr double kLog2e = 1.4426950408889634;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t rows_of(const AttentionProblem& p) { return p.q_seqs.rows * p.group; }

const Instance* find_instance(const AttentionProblem& p) {
  for (const Instance& i : p.dtype == DType::bf16 ? bf16_instances() : f16_instances())
    if (p.head_dim == i.dim && p.head_dim_v == i.dim && rows_of(p) <= i.rows) return &i;
  return nullptr;
}

int64_t tiles_of(const AttentionProblem& p, const Instance& i) {
  return p.batch * p.heads_k * std::max<int64_t>(1, ceil_div(p.k_seqs.rows, i.tile_keys) + 1);  // a window may begin within a tile
}

std::string why_not(const AttentionProblem& p, const Config& config) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return std::string("takes float16 and bfloat16 only: got ") + info(p.dtype).name;
  if (const CudaDevice& d = device(p.device_id); d.major != 9 || d.minor != 0)
    return "is for compute capability 9.0: cuda:" + std::to_string(p.device_id) + " (" + d.name + ") has " + std::to_string(d.major) + "." +
           std::to_string(d.minor);
  if (rows_of(p) > kMostRows)
    return "takes at most " + std::to_string(kMostRows) + " query rows (tokens x heads of a group): got " + std::to_string(rows_of(p));
  if (p.batch < 1 || p.heads_k < 1 || rows_of(p) < 1 || p.k.shape[0] < 1 || p.k.shape[1] < 1)
    return "takes at least one sequence, head, query and key";
  const Instance* instance = find_instance(p);
  if (!instance)
    return "takes head dims of 64, 128 and 256, the same for keys and values: got " + std::to_string(p.head_dim) + " and " +
           std::to_string(p.head_dim_v);
  for (const auto& [name, view] : {std::pair<const char*, const View&>{"the keys", p.k}, {"the values", p.v}})
    if (std::string why = sm90::tma_objection(name, view); !why.empty()) return why;
  if (generic::tensor_of(p.q).granule < 4) return "takes queries whose rows begin on 4 bytes";
  if (config.num_splits != 0)
    return "splits by the lengths, on the GPU: cfg.num_splits must be 0, got " + std::to_string(config.num_splits);
  const struct {
    const char* name;
    int64_t value, own;
  } tiles[] = {{"block_q", config.block_q, instance->rows}, {"block_k", config.block_k, instance->tile_keys}};
  for (const auto& [name, value, own] : tiles)
    if (value != 0 && value != own)
      return std::string("cfg.") + name + " must be " + std::to_string(own) + " for these dims and rows: got " + std::to_string(value);
  if (config.kernel.empty() && !p.has(kPages) && rows_of(p) >= kManyRows && p.k_seqs.longest < kManyKeys)
    return "leaves " + std::to_string(kManyRows) + " query rows or more with fewer than " + std::to_string(kManyKeys) + " keys to forward_sm90";
  if (p.batch > kMaxBatch) return "takes at most " + std::to_string(kMaxBatch) + " sequences: got " + std::to_string(p.batch);
  if (p.k_seqs.rows >= Params::kMostKeys || p.k.shape[0] >= Params::kMostKeys || tiles_of(p, *instance) >= Params::kMostKeys)
    return "takes fewer than 2^30 keys a sequence, pages and tiles of keys";
  return "";
}

int64_t blocks_of(const AttentionProblem& p, const Instance& i) {
  return std::min<int64_t>(tiles_of(p, i), int64_t{device(p.device_id).multiprocessors} * i.blocks);
}

// Where the workspace has what.
struct Layout {
  size_t states, outs, total;
  Layout(const AttentionProblem& p, int64_t blocks) : states(0) {
    const size_t rows = blocks > 1 ? static_cast<size_t>(2 * blocks * rows_of(p)) : 0;
    outs = (rows * 2 * sizeof(float) + 255) / 256 * 256;
    total = outs + rows * static_cast<size_t>(p.head_dim) * sizeof(float);
  }
};

Plan plan(const AttentionProblem& p, const Config&, int) {
  const Instance& instance = *find_instance(p);
  Plan plan;
  plan.block_q = instance.rows;
  plan.block_k = instance.tile_keys;
  plan.num_splits = blocks_of(p, instance);
  plan.workspace_bytes = Layout(p, plan.num_splits).total;
  return plan;
}

void run(const AttentionProblem& p, const Plan& plan, void* workspace, const Execution& execution) {
  const Instance& instance = *find_instance(p);
  const Layout layout(p, plan.num_splits);
  Params params{};
  params.f = generic::problem_params(p);
  params.rows = static_cast<int32_t>(rows_of(p));
  params.pages = static_cast<int32_t>(p.k.shape[0]);
  params.box_keys = instance.tile_keys;
  if (p.has(kPages)) params.box_keys = static_cast<int32_t>(std::gcd<int64_t, int64_t>(p.page_size(), instance.tile_keys));
  // The maximum of scores before they are scaled is that of the scaled ones for a positive scale only.
  params.reshape = p.has(kSoftcap) || !(p.softmax_scale > 0);
  params.f.scale_log2 = static_cast<float>((params.reshape ? 1 : p.softmax_scale) * kLog2e);
  params.state_parts = reinterpret_cast<float*>(static_cast<char*>(workspace) + layout.states);
  params.out_parts = reinterpret_cast<float*>(static_cast<char*>(workspace) + layout.outs);
  params.evict_first = 4 * p.batch * p.heads_k * p.k_seqs.rows * p.head_dim < kLarge * device(p.device_id).l2_bytes;
  // What lies behind a row is another head's, and comes in its own time.
  const auto promotion = p.head_dim < 128 ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
  const auto map = [&](const View& v) { return sm90::rows_map(v, params.box_keys, promotion); };
  instance.launch(params, {map(p.k), map(p.v)}, static_cast<int>(plan.num_splits), execution.stream);
}

bool available() { return some_device_has(9, 0); }

constexpr Kernel kKernels[] = {{"decode_sm90", "sm90a", kHonoured, available, why_not, plan, run}};

}  // namespace

std::span<const Kernel> sm90_decode_kernels() { return kKernels; }

}  // namespace attile::cuda
