// The generic backward: which instance, which grids, which workspace.
#include "cuda/generic/backward_launch.hpp"

#include <algorithm>

#include "cuda/device.hpp"
#include "cuda/generic/backward_instances.hpp"
#include "cuda/generic/problem_params.hpp"

namespace attile::cuda {
namespace {

using namespace generic;

constexpr uint64_t kGeneralOptions = kBias | kAttentionMask | kSegmentIds | kSoftcap | kDropout | kLogitsDtype;
constexpr uint64_t kOptions = kGeneralOptions | kSinks | kCausal | kWindow | kVarlenQ | kVarlenK | kLse | kReducedPrecision;
constexpr int64_t kRows = 64;  // of the side that a block owns

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// general: the gradient of a bias, which the general ones have.
const BackwardInstance& find_instance(const BackwardProblem& b, bool general) {
  const AttentionProblem& p = b.forward;
  general = general || (p.options & kGeneralOptions) != 0;
  std::span<const BackwardInstance> by_dim[3];
  if (p.dtype == DType::bf16) {
    by_dim[0] = backward_bf16_64(), by_dim[1] = backward_bf16_128(), by_dim[2] = backward_bf16_512();
  } else if (p.dtype == DType::f16) {
    by_dim[0] = backward_f16_64(), by_dim[1] = backward_f16_128(), by_dim[2] = backward_f16_512();
  } else {
    by_dim[0] = backward_f32_64(), by_dim[2] = backward_f32_512();
  }
  for (const auto& instances : by_dim)
    for (const BackwardInstance& i : instances)
      if ((i.general || !general) && (i.dim == 0 || std::max(p.head_dim, p.head_dim_v) <= i.dim)) return i;
  return by_dim[2].back();
}

// Tiles of one side: of a sequence, or where packed of all of them and one more, which clears what lies behind.
int64_t tiles_of(const Sequences& s, int64_t batch) {
  if (s.rows == 0) return 0;
  return s.packed ? s.rows / kRows + batch + 1 : ceil_div(s.rows, kRows);
}

int64_t blocks_of(const Sequences& s, int64_t batch, int64_t heads) { return tiles_of(s, batch) * heads * (s.packed ? 1 : batch); }

// Rows of [q batch][head][row].
int64_t delta_rows(const AttentionProblem& p) { return (p.q_seqs.packed ? 1 : p.batch) * p.heads_q * p.q_seqs.rows; }

}  // namespace

std::string backward_why_not(const BackwardProblem& problem) {
  const AttentionProblem& p = problem.forward;
  if (p.dtype != DType::bf16 && p.dtype != DType::f16 && p.dtype != DType::f32)
    return std::string("takes float32, float16 and bfloat16 only: got ") + info(p.dtype).name;
  if (std::string missing = lacks(p.device_id, 8, 0); !missing.empty()) return missing;
  if (p.options & ~kOptions) return "does not take all of these options";
  if (!p.lse || !p.out) return "needs out and lse of the forward call";
  const int shared = device(p.device_id).shared_bytes, needed = find_instance(problem, static_cast<bool>(problem.dbias)).shared_bytes;
  if (needed > shared) return "needs " + std::to_string(needed) + " bytes of shared memory a block, the GPU has " + std::to_string(shared);
  return "";
}

size_t backward_workspace_bytes(const BackwardProblem& problem) { return static_cast<size_t>(delta_rows(problem.forward)) * sizeof(float); }

void run_backward(const BackwardProblem& problem, void* workspace, void* stream) {
  const AttentionProblem& p = problem.forward;
  const BackwardInstance& instance = find_instance(problem, false);
  BackwardParams b{};
  b.f = problem_params(p);
  b.heads_q = static_cast<int32_t>(p.heads_q);
  b.dout = tensor_of(problem.dout);
  b.dq = tensor_of(problem.dq);
  b.dk = tensor_of(problem.dk);
  b.dv = tensor_of(problem.dv);
  if (problem.dlse) {
    b.dlse = reinterpret_cast<const float*>(problem.dlse.data);
    b.dlse_batch = problem.dlse.stride[0], b.dlse_head = problem.dlse.stride[1], b.dlse_row = problem.dlse.stride[2];
  }
  b.delta = static_cast<float*>(workspace);
  if (problem.dsinks) {
    b.dsinks = reinterpret_cast<float*>(problem.dsinks.data);
    b.sinks_shared = problem.dsinks.shape[2] == 1 && p.heads_q != 1;
  }
  run_backward_rows(p.dtype, b, delta_rows(p), problem.dsinks ? problem.dsinks.shape[2] * problem.dsinks.shape[3] : 0, stream);

  const int64_t most_columns = std::max(p.head_dim, p.head_dim_v);
  b.column_parts = static_cast<int32_t>(ceil_div(most_columns, instance.columns));
  b.tiles = static_cast<int32_t>(tiles_of(p.k_seqs, p.batch));
  instance.keys(b, blocks_of(p.k_seqs, p.batch, p.heads_k) * b.column_parts, stream);
  b.column_parts = static_cast<int32_t>(ceil_div(p.head_dim, instance.columns));
  b.tiles = static_cast<int32_t>(tiles_of(p.q_seqs, p.batch));
  instance.queries(b, blocks_of(p.q_seqs, p.batch, p.heads_q) * b.column_parts, stream);

  if (!problem.dbias) return;
  const BackwardInstance& general = find_instance(problem, true);
  const View& d = problem.dbias;
  const int64_t size = static_cast<int64_t>(size_of(d.dtype));
  b.dbias = {d.data, d.stride[0] * size, d.stride[1] * size, d.stride[2] * size, d.stride[3] * size, d.dtype, false};
  for (int i = 0; i < 4; ++i) b.dbias_shape[i] = static_cast<int32_t>(d.shape[i]);
  b.tiles = static_cast<int32_t>(ceil_div(d.shape[2], kRows));
  const int64_t key_tiles = ceil_div(d.shape[3], general.other);
  general.bias(b, static_cast<int>(key_tiles), key_tiles * b.tiles * d.shape[0] * d.shape[1], stream);
}

}  // namespace attile::cuda
