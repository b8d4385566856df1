// mla_attention_backward's arguments to a BackwardProblem with latents: those of the forward call as mla_attention judges them, then its results
// and their gradients.
#include "core/result_checks.hpp"
#include "core/validate.hpp"

namespace attile {
namespace {

constexpr const char* kFunction = "mla_attention_backward";

attile_mla_attention_params forward_params(const attile_mla_attention_backward_params& p) {
  attile_mla_attention_params f{};
  f.struct_size = sizeof f;
  f.query = p.query, f.key_value = p.key_value, f.w_kc = p.w_kc, f.w_vc = p.w_vc;
  f.b_q = p.b_q, f.b_k = p.b_k;
  f.cu_seqlens = p.cu_seqlens;
  f.bias = p.bias, f.softmax_aux = p.softmax_aux, f.attention_mask = p.attention_mask;
  f.softmax_scale = p.softmax_scale, f.has_softmax_scale = p.has_softmax_scale;
  f.logits_soft_cap = p.logits_soft_cap, f.has_logits_soft_cap = p.has_logits_soft_cap;
  f.dropout_prob = p.dropout_prob, f.dropout_seed = p.dropout_seed, f.has_dropout_seed = p.has_dropout_seed;
  f.window_left = p.window_left, f.window_right = p.window_right, f.has_sliding_window = p.has_sliding_window;
  f.causal = p.causal, f.causal_alignment = p.causal_alignment;
  f.platform = p.platform;
  return f;
}

}  // namespace

BackwardProblem validate(const attile_mla_attention_backward_params& p) {
  const struct {
    const char* name;
    const attile_tensor* t;
  } needed[] = {{"dout", p.dout}, {"query", p.query}, {"key_value", p.key_value}, {"w_kc", p.w_kc}, {"w_vc", p.w_vc},
                {"out", p.out},   {"lse", p.lse}};
  for (const auto& [name, t] : needed)
    if (!t) type_error(kFunction, std::string(name) + " is required", "an array", "none");
  BackwardProblem problem;
  static_cast<AttentionProblem&>(problem) = validate(forward_params(p), kFunction);
  add_results(problem, *p.query, {p.dout, p.out, p.lse, p.dlse});
  problem.deterministic = p.deterministic != 0;
  // Their shapes count in the plan; their memory comes later.
  if (p.bias) problem.dbias = view_of(*p.bias), problem.dbias.data = nullptr;
  if (p.softmax_aux) problem.dsinks = view_of(*p.softmax_aux), problem.dsinks.data = nullptr;
  return problem;
}

}  // namespace attile
