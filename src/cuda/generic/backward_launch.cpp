// backward_generic_sm80: which instance, which grids, which workspace.
#include "cuda/generic/backward_launch.hpp"

#include <algorithm>

#include "core/backward_problem.hpp"
#include "cuda/device.hpp"
#include "cuda/generic/backward_instances.hpp"
#include "cuda/generic/problem_params.hpp"

namespace attile::cuda {
namespace {

using namespace generic;

constexpr uint64_t kGeneralOptions = kBias | kAttentionMask | kSegmentIds | kSoftcap | kDropout | kLogitsDtype;
constexpr uint64_t kOptions = kGeneralOptions | kSinks | kCausal | kWindow | kVarlenQ | kVarlenK | kReducedPrecision;
constexpr int64_t kRows = 64;  // of queries, a block

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// general: the gradient of a bias, which the general ones have.
const BackwardInstance& find_instance(const AttentionProblem& p, bool general) {
  general = general || (p.options & kGeneralOptions) != 0;
  std::span<const BackwardInstance> by_dim[3];
  if (p.dtype == DType::bf16) {
    by_dim[0] = backward_bf16_64(), by_dim[1] = backward_bf16_128(), by_dim[2] = backward_bf16_512();
  } else if (p.dtype == DType::f16) {
    by_dim[0] = backward_f16_64(), by_dim[1] = backward_f16_128(), by_dim[2] = backward_f16_512();
  } else {
    by_dim[0] = backward_f32_64(), by_dim[2] = backward_f32_512();
  }
  const int shared = device(p.device_id).shared_bytes;
  for (const auto& instances : by_dim)
    for (const BackwardInstance& i : instances)
      if ((i.general || !general) && std::max(p.head_dim, p.head_dim_v) <= i.dim && i.shared_bytes <= shared) return i;
  return by_dim[2].back();
}

// Tiles of one side: of a sequence, or where packed of all of them and one more, which clears what lies behind.
int64_t tiles_of(const Sequences& s, int64_t batch, int64_t rows) {
  if (s.rows == 0) return 0;
  return s.packed ? s.rows / rows + batch + 1 : ceil_div(s.rows, rows);
}

int64_t blocks_of(const Sequences& s, int64_t batch, int64_t heads, int64_t rows) {
  return tiles_of(s, batch, rows) * heads * (s.packed ? 1 : batch);
}

bool sums_queries(const BackwardProblem& b) { return !b.deterministic && find_instance(b, false).finish; }

// In floats: lse and delta of [q batch][head][row], and where dQ is summed.
struct Workspace {
  int64_t rows, sums;

  explicit Workspace(const BackwardProblem& p) {
    rows = ((p.q_seqs.packed ? 1 : p.batch) * p.heads_q * p.q_seqs.rows + 3) / 4 * 4;
    sums = sums_queries(p) ? blocks_of(p.q_seqs, p.batch, p.heads_q, kRows) * kRows * find_instance(p, false).dim : 0;
  }
  int64_t floats() const { return 2 * rows + sums; }
};

std::string why_not(const AttentionProblem& p, const Config& config) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16 && p.dtype != DType::f32)
    return std::string("takes float32, float16 and bfloat16 only: got ") + info(p.dtype).name;
  if (std::string missing = lacks(p.device_id, 8, 0); !missing.empty()) return missing;
  const BackwardInstance& instance = find_instance(p, p.has(kBias));
  const int shared = device(p.device_id).shared_bytes;
  if (instance.shared_bytes > shared)
    return "needs " + std::to_string(instance.shared_bytes) + " bytes of shared memory a block, the GPU has " + std::to_string(shared);
  const struct {
    const char* name;
    int64_t value, own;
  } fields[] = {{"block_q", config.block_q, kRows}, {"block_k", config.block_k, instance.key_rows}, {"num_splits", config.num_splits, 1}};
  for (const auto& [name, value, own] : fields)
    if (value != 0 && value != own)
      return std::string("cfg.") + name + " must be " + std::to_string(own) + " for these head dims and options: got " +
             std::to_string(value);
  constexpr int64_t kMost = ForwardParams::kUnlimited;
  if (p.q_seqs.rows >= kMost || p.k_seqs.rows >= kMost) return "takes fewer than 2^30 tokens";
  const int64_t parts = ceil_div(std::max(p.head_dim, p.head_dim_v), instance.columns);
  if (std::max(blocks_of(p.q_seqs, p.batch, p.heads_q, kRows), blocks_of(p.k_seqs, p.batch, p.heads_k, kRows)) * parts >= int64_t{1} << 31)
    return "takes fewer than 2^31 blocks";
  return "";
}

Plan plan(const AttentionProblem& p, const Config&, int) {
  Plan plan;
  plan.block_q = kRows;
  plan.block_k = find_instance(p, false).key_rows;
  plan.workspace_bytes = static_cast<size_t>(Workspace(backward(p)).floats()) * sizeof(float);
  return plan;
}

Elementwise elements_of(const View& v) {
  const int64_t size = static_cast<int64_t>(size_of(v.dtype));
  return {v.data, v.stride[0] * size, v.stride[1] * size, v.stride[2] * size, v.stride[3] * size, v.dtype, false, 0};
}

void run(const AttentionProblem& problem, const Plan&, void* workspace, const Execution& execution) {
  const BackwardProblem& p = backward(problem);
  void* const stream = execution.stream;
  const BackwardInstance& instance = find_instance(p, false);
  const Workspace parts(p);
  BackwardParams b{};
  b.f = problem_params(p);
  b.f.scale_log2 = static_cast<float>(p.softmax_scale * 1.4426950408889634);
  b.heads_q = static_cast<int32_t>(p.heads_q);
  b.adds = p.adds;
  b.dout = tensor_of(p.dout);
  b.dq = tensor_of(p.dq);
  b.dk = tensor_of(p.dk);
  b.dv = tensor_of(p.dv);
  constexpr int64_t kSize = sizeof(float);
  b.lse = p.lse.data;
  b.lse_batch = p.lse.stride[0] * kSize, b.lse_head = p.lse.stride[1] * kSize, b.lse_row = p.lse.stride[2] * kSize;
  if (p.dlse) {
    b.dlse = p.dlse.data;
    b.dlse_batch = p.dlse.stride[0] * kSize, b.dlse_head = p.dlse.stride[1] * kSize, b.dlse_row = p.dlse.stride[2] * kSize;
  }
  b.row_lse = static_cast<float*>(workspace);
  b.delta = b.row_lse + parts.rows;
  if (p.dsinks) {
    b.dsinks = elements_of(p.dsinks);
    b.sinks_shared = p.dsinks.shape[2] == 1 && p.heads_q != 1;
  }
  if (parts.sums > 0) {
    b.sums = b.delta + parts.rows;
    b.sums_tiles = static_cast<int32_t>(tiles_of(p.q_seqs, p.batch, kRows));
    check(cudaMemsetAsync(b.sums, 0, static_cast<size_t>(parts.sums) * sizeof(float), static_cast<cudaStream_t>(stream)),
          "clearing backward_generic's workspace");
  }
  run_backward_rows(p.dtype, b, (p.q_seqs.packed ? 1 : p.batch) * p.heads_q * p.q_seqs.rows,
                    p.dsinks ? p.dsinks.shape[2] * p.dsinks.shape[3] : 0, stream);

  const int64_t most_columns = std::max(p.head_dim, p.head_dim_v);
  b.column_parts = static_cast<int32_t>(ceil_div(most_columns, instance.columns));
  b.tiles = static_cast<int32_t>(tiles_of(p.k_seqs, p.batch, instance.key_rows));
  instance.keys(b, blocks_of(p.k_seqs, p.batch, p.heads_k, instance.key_rows) * b.column_parts, stream);
  b.column_parts = static_cast<int32_t>(ceil_div(p.head_dim, instance.columns));
  b.tiles = static_cast<int32_t>(tiles_of(p.q_seqs, p.batch, kRows));
  const int64_t q_blocks = blocks_of(p.q_seqs, p.batch, p.heads_q, kRows);
  if (b.sums) {
    instance.finish(b, q_blocks, stream);
  } else {
    instance.queries(b, q_blocks * b.column_parts, stream);
  }

  if (!p.dbias) return;
  const BackwardInstance& general = find_instance(p, true);
  b.dbias = elements_of(p.dbias);
  for (int i = 0; i < 4; ++i) b.dbias_shape[i] = static_cast<int32_t>(p.dbias.shape[i]);
  b.tiles = static_cast<int32_t>(ceil_div(p.dbias.shape[2], kRows));
  const int64_t key_tiles = ceil_div(p.dbias.shape[3], general.other);
  general.bias(b, static_cast<int>(key_tiles), key_tiles * b.tiles * p.dbias.shape[0] * p.dbias.shape[1], stream);
}

bool available() { return some_device_has(8, 0); }

constexpr Kernel kKernels[] = {{"backward_generic_sm80", "sm80", kOptions, available, why_not, plan, run}};

}  // namespace

std::span<const Kernel> generic_backward_kernels() { return kKernels; }

}  // namespace attile::cuda
