#include "cuda/mla/gradients_launch.hpp"

#include <algorithm>

#include "core/backward_problem.hpp"
#include "cuda/device.hpp"
#include "cuda/kernels.hpp"
#include "cuda/mla/copy_rows.hpp"
#include "cuda/mla/pieces.hpp"
#include "cuda/mla/products.hpp"
#include "cuda/mla/sums.hpp"

namespace attile::cuda {
namespace {

using namespace generic;

constexpr uint64_t kHonours = kLatents | kBias | kAttentionMask | kSinks | kCausal | kWindow | kSoftcap | kDropout | kVarlenQ | kVarlenK;

// To which all pieces add: float32, of the shapes of the gradients. Absent: one that no piece shares with another is written where it belongs.
struct Sums {
  LatentGradients of;
  View dbias, dsinks;
  size_t bytes;
};

// An array's own four axes in C's order, which a kernel is told as batch, head, row and key.
View take_like(char*& at, const View& v) {
  View sums = take(at, DType::f32, 1, v.shape[0] * v.shape[1] * v.shape[2], 1, v.shape[3]);
  const int64_t row = sums.stride[1];
  std::copy_n(v.shape, 4, sums.shape);
  const int64_t stride[] = {v.shape[1] * v.shape[2] * row, v.shape[2] * row, row, 1};
  std::copy_n(stride, 4, sums.stride);
  return sums;
}

Sums sums_in(const BackwardProblem& p, char* workspace) {
  const Latents& latents = p.latents;
  char* at = workspace;
  Sums s{};
  s.of.latent = take(at, DType::f32, latents.latent.shape[0], latents.latent.shape[1], 1, latents.rank);
  s.of.w_kc = take(at, DType::f32, 1, latents.rank, p.heads_k, latents.nope_dim);
  s.of.w_vc = take(at, DType::f32, 1, latents.rank, p.heads_k, p.head_dim_v);
  if (latents.rope_dim > 0 && !latents.rope_by_head)
    s.of.k_rope = take(at, DType::f32, latents.latent.shape[0], latents.latent.shape[1], 1, latents.rope_dim);
  if (latents.q_rope && latents.q_rope.shape[2] != p.heads_q)
    s.of.q_rope = take(at, DType::f32, p.q.shape[0], p.q.shape[1], 1, latents.rope_dim);
  if (p.dbias) s.dbias = take_like(at, p.dbias);
  if (p.dsinks) s.dsinks = take_like(at, p.dsinks);
  s.bytes = static_cast<size_t>(at - workspace);
  return s;
}

// What the piece adds to: all of an axis that was broadcast.
View own_part(View v, int dim, int64_t first, int64_t count) { return v.shape[dim] == 1 ? v : cut(v, dim, first, count); }

BackwardProblem gradients_of(const BackwardProblem& p, const Piece& piece, const Stored& stored, const AttentionProblem& inner,
                             const Sums& sums) {
  BackwardProblem b;
  static_cast<AttentionProblem&>(b) = inner;
  const int64_t head = inner.dropout.first_head, heads = inner.heads_q, sequence = p.q_seqs.packed ? 0 : piece.batch;
  b.dout = part_of(p.dout, piece, head, heads);
  b.dlse = cut(cut(p.dlse, 0, piece.batch, piece.batches), 1, head, heads);
  b.dq = stored.dq ? stored.dq : part_of(p.dq, piece, head, heads);
  b.dk = stored.dk;
  b.dv = stored.dv;
  if (sums.dbias) b.dbias = own_part(own_part(sums.dbias, 0, sequence, inner.batch), 1, head, heads);
  if (sums.dsinks) b.dsinks = own_part(sums.dsinks, 2, head, heads);
  b.adds = true;
  b.deterministic = p.deterministic;
  return b;
}

// f(piece, its arrays, its gradients).
template <class F>
void each_gradient(const BackwardProblem& p, const Sums& sums, char* workspace, F f) {
  each_piece(p, Form::gradients, workspace, [&](const Piece& piece, const Stored& stored, const AttentionProblem& inner, bool) {
    f(piece, stored, gradients_of(p, piece, stored, inner, sums));
  });
}

const Kernel* find_kernel(const BackwardProblem& p, const Config& config, std::string& why) {
  return kernel_of_pieces(backward_kernels(), p, config, why, [&](auto ask) {
    each_gradient(p, sums_in(p, nullptr), nullptr, [&](const Piece&, const Stored&, const BackwardProblem& b) { ask(b); });
  });
}

std::string why_not(const AttentionProblem& p, const Config& config) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16 && p.dtype != DType::f32)
    return std::string("takes float32, float16 and bfloat16 only: got ") + info(p.dtype).name;
  if (std::string missing = lacks(p.device_id, 8, 0); !missing.empty()) return missing;
  if (config.strategy == MlaStrategy::absorb)
    return "computes gradients of rebuilt keys and values: cfg.strategy must be rebuild: got absorb";
  std::string why;
  return find_kernel(backward(p), config, why) ? "" : why;
}

Plan plan(const AttentionProblem& problem, const Config& config, int threads) {
  const BackwardProblem& p = backward(problem);
  Plan all;
  all.strategy = MlaStrategy::rebuild;
  std::string why;
  const Kernel* kernel = all.inner = find_kernel(p, config, why);
  const Sums sums = sums_in(p, nullptr);
  each_gradient(p, sums, nullptr, [&](const Piece&, const Stored& stored, const BackwardProblem& b) {
    const Plan part = kernel->plan(b, {}, threads);
    if (all.block_q == 0) all.block_q = part.block_q, all.block_k = part.block_k;
    all.workspace_bytes = std::max(all.workspace_bytes, stored.bytes + part.workspace_bytes);
  });
  all.workspace_bytes += sums.bytes;
  return all;
}

// The part of the rope dims of dK or dQ, a head each where `to` has heads, else summed over them.
void take_rope(const AttentionProblem& p, const View& gradient, const View& to, const View& sums, const Piece& piece, int64_t head,
               void* stream) {
  const View rope = columns_of(gradient, p.latents.nope_dim, p.latents.rope_dim);
  if (sums) {
    add_heads(rope, part_of(sums, piece, 0, 1), stream);
  } else {
    copy_rows(rope, part_of(to, piece, head, gradient.shape[2]), stream);
  }
}

void run(const AttentionProblem& problem, const Plan& plan, void* workspace, const Execution& execution) {
  const BackwardProblem& p = backward(problem);
  const Latents& latents = p.latents;
  void* const stream = execution.stream;
  const Sums sums = sums_in(p, static_cast<char*>(workspace));
  check(cudaMemsetAsync(workspace, 0, sums.bytes, static_cast<cudaStream_t>(stream)), "clearing the sums of mla_backward_generic");
  const Kernel* kernel = plan.inner;
  bool any = false;
  each_gradient(p, sums, static_cast<char*>(workspace) + sums.bytes,
                [&](const Piece& piece, const Stored& stored, const BackwardProblem& b) {
                  any = true;
                  rebuild(p, piece, stored, b, stream);
                  kernel->run(b, kernel->plan(b, {}, 1), static_cast<char*>(workspace) + sums.bytes + stored.bytes, execution);
                  add_gradients(p, piece, stored, b, sums.of, stream);
                  const int64_t head = b.dropout.first_head;
                  if (latents.rope_dim > 0) take_rope(p, stored.dk, p.of_latents.k_rope, sums.of.k_rope, piece, head, stream);
                  if (stored.dq) {
                    copy_rows(columns_of(stored.dq, 0, latents.nope_dim), part_of(p.dq, piece, head, b.heads_q), stream);
                    take_rope(p, stored.dq, p.of_latents.q_rope, sums.of.q_rope, piece, head, stream);
                  }
                });
  round_sums(sums.of.latent, p.of_latents.latent, stream);
  round_sums(sums.of.w_kc, p.of_latents.w_kc, stream);
  round_sums(sums.of.w_vc, p.of_latents.w_vc, stream);
  if (p.dbias) round_sums(sums.dbias, p.dbias, stream);
  if (p.dsinks) round_sums(sums.dsinks, p.dsinks, stream);
  // Where there is no query, nothing has written what heads have of their own.
  if (sums.of.k_rope || (latents.rope_dim > 0 && !any)) round_sums(sums.of.k_rope, p.of_latents.k_rope, stream);
  if (sums.of.q_rope) round_sums(sums.of.q_rope, p.of_latents.q_rope, stream);
}

bool available() { return some_device_has(8, 0); }

constexpr Kernel kKernels[] = {{"mla_backward_generic_sm80", "sm80", kHonours, available, why_not, plan, run}};

}  // namespace

std::span<const Kernel> generic_mla_attention_backward_kernels() { return kKernels; }

}  // namespace attile::cuda
