// flash_attention as an operation: validate, choose, plan; bind out and lse; run.
#include "capi/attention_op.hpp"
#include "core/validate.hpp"

namespace attile {
namespace {

struct FlashAttentionOp final : AttentionOp {
  explicit FlashAttentionOp(const attile_flash_attention_params& p) : AttentionOp(validate(p), p.config) {
    const struct { const char* name; const attile_tensor* t; } given[] = {
        {"query", p.query}, {"key", p.key}, {"value", p.value}, {"bias", p.bias}, {"softmax_aux", p.softmax_aux},
        {"attention_mask", p.attention_mask}, {"q_scale", p.q_scale}, {"k_scale", p.k_scale}, {"v_scale", p.v_scale}};
    for (const auto& [name, t] : given) add_input(name, t);
    add_index("cum_seqlens_q", p.cum_seqlens_q, problem.q_seqs.cu);
    add_index("cum_seqlens_k", p.cum_seqlens_k, problem.k_seqs.cu);
    add_index("q_segment_ids", p.q_segment_ids, problem.q_ids);
    add_index("kv_segment_ids", p.kv_segment_ids, problem.k_ids);
    add_outputs(*p.query);
  }
};

}  // namespace

attile_op* create_flash_attention(const attile_flash_attention_params& params) { return new FlashAttentionOp(params); }

}  // namespace attile
