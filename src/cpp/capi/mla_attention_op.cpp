// mla_attention and its gradients as operations.
#include "capi/attention_op.hpp"
#include "core/check.hpp"
#include "core/tensor_checks.hpp"
#include "core/validate.hpp"

namespace attile {
namespace {

MlaStrategy strategy_of(const char* function, int32_t strategy) {
  if (strategy < ATTILE_MLA_AUTO || strategy > ATTILE_MLA_ABSORB)
    value_error(function, "cfg.strategy is unknown", "an attile_mla_strategy", int64_t{strategy});
  return strategy == ATTILE_MLA_REBUILD ? MlaStrategy::rebuild : strategy == ATTILE_MLA_ABSORB ? MlaStrategy::absorb : MlaStrategy::none;
}

struct MlaAttentionOp final : AttentionOp {
  explicit MlaAttentionOp(const attile_mla_attention_params& p)
      : AttentionOp(validate(p), p.config, strategy_of("mla_attention", p.strategy)) {
    const struct { const char* name; const attile_tensor* t; } given[] = {
        {"query", p.query}, {"key_value", p.key_value}, {"w_kc", p.w_kc}, {"w_vc", p.w_vc}, {"b_q", p.b_q}, {"b_k", p.b_k},
        {"bias", p.bias}, {"softmax_aux", p.softmax_aux}, {"attention_mask", p.attention_mask}};
    for (const auto& [name, t] : given) add_input(name, t);
    add_index("cu_seqlens", p.cu_seqlens, problem.q_seqs.cu);
    add_index("cu_seqlens", p.cu_seqlens, problem.k_seqs.cu);
    add_outputs(*p.query);
  }
};

struct MlaAttentionBackwardOp final : AttentionOp {
  BackwardProblem whole;

  explicit MlaAttentionBackwardOp(const attile_mla_attention_backward_params& p) : MlaAttentionBackwardOp(p, validate(p)) {}

  MlaAttentionBackwardOp(const attile_mla_attention_backward_params& p, const BackwardProblem& valid)
      : AttentionOp(valid, p.config, &CudaLibrary::mla_attention_backward_kernels, strategy_of(valid.function, p.strategy)), whole(valid) {
    const struct { const char* name; const attile_tensor* t; } given[] = {
        {"dout", p.dout}, {"query", p.query}, {"key_value", p.key_value}, {"w_kc", p.w_kc}, {"w_vc", p.w_vc}, {"out", p.out},
        {"lse", p.lse}, {"b_q", p.b_q}, {"b_k", p.b_k}, {"dlse", p.dlse}, {"bias", p.bias}, {"softmax_aux", p.softmax_aux},
        {"attention_mask", p.attention_mask}};
    for (const auto& [name, t] : given) add_input(name, t);
    add_index("cu_seqlens", p.cu_seqlens, whole.q_seqs.cu);
    add_index("cu_seqlens", p.cu_seqlens, whole.k_seqs.cu);
    LatentGradients& of = whole.of_latents;
    const int32_t by_head = p.query->rank;  // of arrays of tokens that have heads
    for (const auto& [name, t, view, tokens] :
         {Gradient{"query", p.query, &whole.dq, false}, Gradient{"key_value", p.key_value, &of.latent, true},
          Gradient{"w_kc", p.w_kc, &of.w_kc, false}, Gradient{"w_vc", p.w_vc, &of.w_vc, false},
          Gradient{"b_q", p.b_q, &of.q_rope, p.b_q && p.b_q->rank < by_head}, Gradient{"b_k", p.b_k, &of.k_rope, p.b_k && p.b_k->rank < by_head},
          Gradient{"bias", p.bias, &whole.dbias, false}, Gradient{"softmax_aux", p.softmax_aux, &whole.dsinks, false}}) {
      if (!t) continue;
      gradients_[num_outputs] = {name, t, view, tokens};
      add_output(name, dtype_of(t->dtype), *t, std::span(t->shape, static_cast<size_t>(t->rank)));
    }
  }

  void bind_outputs(const attile_tensor* const* given, int32_t count) override {
    if (count != num_outputs) value_error(function, "wrong number of outputs", int64_t{num_outputs}, int64_t{count});
    for (int32_t i = 0; i < count; ++i) *gradients_[i].view = gradients_[i].tokens ? tokens_view(*given[i], false) : view_of(*given[i]);
  }

  const AttentionProblem& asked() const override { return whole; }

 private:
  struct Gradient {
    const char* name;
    const attile_tensor* t;
    View* view;
    bool tokens;  // without an axis of heads
  };
  Gradient gradients_[kMaxOutputs] = {};
};

}  // namespace

attile_op* create_mla_attention(const attile_mla_attention_params& params) { return new MlaAttentionOp(params); }
attile_op* create_mla_attention_backward(const attile_mla_attention_backward_params& params) { return new MlaAttentionBackwardOp(params); }

}  // namespace attile
