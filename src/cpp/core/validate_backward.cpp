// flash_attention_backward's arguments to a BackwardProblem: those of the forward call as flash_attention judges them, then its results and
// their gradients, which have the shapes that the forward call gave them.
#include "core/result_checks.hpp"
#include "core/validate.hpp"

namespace attile {
namespace {

constexpr const char* kFunction = "flash_attention_backward";

attile_flash_attention_params forward_params(const attile_flash_attention_backward_params& p) {
  attile_flash_attention_params f{};
  f.struct_size = sizeof f;
  f.query = p.query, f.key = p.key, f.value = p.value, f.bias = p.bias;
  f.cum_seqlens_q = p.cum_seqlens_q, f.cum_seqlens_k = p.cum_seqlens_k;
  f.softmax_aux = p.softmax_aux;
  f.attention_mask = p.attention_mask, f.q_segment_ids = p.q_segment_ids, f.kv_segment_ids = p.kv_segment_ids;
  f.softmax_scale = p.softmax_scale, f.has_softmax_scale = p.has_softmax_scale;
  f.logits_soft_cap = p.logits_soft_cap, f.has_logits_soft_cap = p.has_logits_soft_cap;
  f.dropout_prob = p.dropout_prob, f.dropout_seed = p.dropout_seed, f.has_dropout_seed = p.has_dropout_seed;
  f.window_left = p.window_left, f.window_right = p.window_right, f.has_sliding_window = p.has_sliding_window;
  f.causal = p.causal, f.causal_alignment = p.causal_alignment;
  f.logits_dtype = p.logits_dtype;
  f.normalize_output = 1;
  f.precision = p.precision;
  f.platform = p.platform;
  f.config = p.config;
  return f;
}

}  // namespace

BackwardProblem validate(const attile_flash_attention_backward_params& p) {
  const struct {
    const char* name;
    const attile_tensor* t;
  } needed[] = {{"dout", p.dout}, {"query", p.query}, {"key", p.key}, {"value", p.value}, {"out", p.out}, {"lse", p.lse}};
  for (const auto& [name, t] : needed)
    if (!t) type_error(kFunction, std::string(name) + " is required", "an array", "none");
  BackwardProblem problem;
  static_cast<AttentionProblem&>(problem) = validate(forward_params(p), kFunction);
  if (problem.dtype == DType::f8e4m3)
    type_error(kFunction, "query has an unsupported dtype", "float64, float32, float16 or bfloat16", name_of(p.query->dtype));
  add_results(problem, *p.query, {p.dout, p.out, p.lse, p.dlse});
  problem.deterministic = p.deterministic != 0;
  return problem;
}

}  // namespace attile
