// flash_attention_backward as an operation: its outputs are the gradients of query, key, value and, where they are given, of bias and
// softmax_aux.
#include "capi/attention_op.hpp"
#include "core/tensor_checks.hpp"
#include "core/validate.hpp"

namespace attile {
namespace {

struct FlashAttentionBackwardOp final : AttentionOp {
  BackwardProblem whole;

  explicit FlashAttentionBackwardOp(const attile_flash_attention_backward_params& p) : FlashAttentionBackwardOp(p, validate(p)) {}

  FlashAttentionBackwardOp(const attile_flash_attention_backward_params& p, const BackwardProblem& valid)
      : AttentionOp(valid, p.config, &CudaLibrary::backward_kernels), whole(valid) {
    const struct {
      const char* name;
      const attile_tensor* t;
    } given[] = {{"dout", p.dout}, {"query", p.query},
                 {"key", p.key},   {"value", p.value},
                 {"out", p.out},   {"lse", p.lse},
                 {"bias", p.bias}, {"softmax_aux", p.softmax_aux},
                 {"dlse", p.dlse}, {"attention_mask", p.attention_mask}};
    for (const auto& [name, t] : given) add_input(name, t);
    add_index("cum_seqlens_q", p.cum_seqlens_q, whole.q_seqs.cu);
    add_index("cum_seqlens_k", p.cum_seqlens_k, whole.k_seqs.cu);
    add_index("q_segment_ids", p.q_segment_ids, whole.q_ids);
    add_index("kv_segment_ids", p.kv_segment_ids, whole.k_ids);
    for (const auto& [name, t, view] :
         {Gradient{"query", p.query, &whole.dq}, Gradient{"key", p.key, &whole.dk}, Gradient{"value", p.value, &whole.dv},
          Gradient{"bias", p.bias, &whole.dbias}, Gradient{"softmax_aux", p.softmax_aux, &whole.dsinks}}) {
      if (!t) continue;
      views_[num_outputs] = view;
      add_output(name, dtype_of(t->dtype), *t, std::span(t->shape, static_cast<size_t>(t->rank)));
    }
  }

  void bind_outputs(const attile_tensor* const* given, int32_t count) override {
    if (count != num_outputs) value_error(function, "wrong number of outputs", int64_t{num_outputs}, int64_t{count});
    for (int32_t i = 0; i < count; ++i) *views_[i] = view_of(*given[i]);
  }

  const AttentionProblem& asked() const override { return whole; }

 private:
  struct Gradient {
    const char* name;
    const attile_tensor* t;
    View* view;
  };
  View* views_[kMaxOutputs] = {};
};

}  // namespace

attile_op* create_flash_attention_backward(const attile_flash_attention_backward_params& params) {
  return new FlashAttentionBackwardOp(params);
}

}  // namespace attile
