// mla_attention as an operation.
#include "capi/attention_op.hpp"
#include "core/check.hpp"
#include "core/validate.hpp"

namespace attile {
namespace {

MlaStrategy strategy_of(const attile_mla_attention_params& p) {
  if (p.strategy < ATTILE_MLA_AUTO || p.strategy > ATTILE_MLA_ABSORB)
    value_error("mla_attention", "cfg.strategy is unknown", "an attile_mla_strategy", int64_t{p.strategy});
  return p.strategy == ATTILE_MLA_REBUILD ? MlaStrategy::rebuild : p.strategy == ATTILE_MLA_ABSORB ? MlaStrategy::absorb : MlaStrategy::none;
}

struct MlaAttentionOp final : AttentionOp {
  explicit MlaAttentionOp(const attile_mla_attention_params& p) : AttentionOp(validate(p), p.config, strategy_of(p)) {
    const struct { const char* name; const attile_tensor* t; } given[] = {
        {"query", p.query}, {"key_value", p.key_value}, {"w_kc", p.w_kc}, {"w_vc", p.w_vc}, {"b_q", p.b_q}, {"b_k", p.b_k},
        {"bias", p.bias}, {"softmax_aux", p.softmax_aux}, {"attention_mask", p.attention_mask}};
    for (const auto& [name, t] : given) add_input(name, t);
    add_index("cu_seqlens", p.cu_seqlens, problem.q_seqs.cu);
    add_index("cu_seqlens", p.cu_seqlens, problem.k_seqs.cu);
    add_outputs(*p.query);
  }
};

}  // namespace

attile_op* create_mla_attention(const attile_mla_attention_params& params) { return new MlaAttentionOp(params); }

}  // namespace attile
