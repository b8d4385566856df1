// flash_attention as an operation: validate, choose, plan; bind out and lse; run.
#include <string>

#include "capi/json.hpp"
#include "capi/op.hpp"
#include "core/tensor_checks.hpp"
#include "core/validate.hpp"
#include "cpu/threads.hpp"

namespace attile {
namespace {

struct FlashAttentionOp final : attile_op {
  AttentionProblem problem;
  Config config;
  Plan plan;
  std::string forced;  // owns config.kernel

  explicit FlashAttentionOp(const attile_flash_attention_params& p) : attile_op("flash_attention"), problem(validate(p)) {
    config = validate_config(function, p.config);
    forced = config.kernel;
    config.kernel = forced;
    plan = choose(cpu_forward_kernels(), problem, config).plan(problem, config, num_threads());
    const struct { const char* name; const attile_tensor* t; } given[] = {
        {"query", p.query}, {"key", p.key}, {"value", p.value}, {"bias", p.bias}, {"cum_seqlens_q", p.cum_seqlens_q},
        {"cum_seqlens_k", p.cum_seqlens_k}, {"softmax_aux", p.softmax_aux}, {"attention_mask", p.attention_mask},
        {"q_segment_ids", p.q_segment_ids}, {"kv_segment_ids", p.kv_segment_ids}, {"q_scale", p.q_scale},
        {"k_scale", p.k_scale}, {"v_scale", p.v_scale}};
    for (const auto& [name, t] : given) add_input(name, t);
    const attile_tensor& q = *p.query;
    const DType lse_type = accumulator_of(problem.dtype);
    if (q.rank == 4) {
      add_output("out", problem.dtype, q, {q.shape[0], q.shape[1], problem.heads_q, problem.head_dim_v});
      add_output("lse", lse_type, q, {q.shape[0], problem.heads_q, q.shape[1]});
    } else {
      add_output("out", problem.dtype, q, {q.shape[0], problem.heads_q, problem.head_dim_v});
      add_output("lse", lse_type, q, {problem.heads_q, q.shape[0]});
    }
    if (!problem.has(kLse)) num_outputs = 1;
  }

  void bind_outputs(const attile_tensor* const* given, int32_t count) override {
    problem.out = view_of(*given[0]);
    if (count > 1) problem.lse = lse_view_of(*given[1]);
  }

  size_t workspace_bytes() const override { return plan.workspace_bytes; }

  void run(void* workspace, const Execution& execution) override { plan.kernel->run(problem, plan, workspace, execution); }

  std::string explain() const override {
    Json json;
    json.open().field("function", function).field("kernel", plan.kernel->name).field("isa", plan.kernel->isa);
    json.key("plan").open().field("block_q", plan.block_q).field("block_k", plan.block_k).field("num_splits", plan.num_splits);
    json.field("workers", int64_t{plan.workers}).close();
    json.field("workspace_bytes", static_cast<int64_t>(plan.workspace_bytes));
    json.key("refused").open('[');
    for (const Refusal& r : refusals(cpu_forward_kernels(), problem, config)) {
      if (r.kernel == plan.kernel) continue;
      const std::string reason = r.reason.empty() ? std::string(plan.kernel->name) + " comes first" : r.reason;
      json.open().field("kernel", r.kernel->name).field("reason", reason).close();
    }
    json.close(']').close();
    return json.text();
  }
};

}  // namespace

attile_op* create_flash_attention(const attile_flash_attention_params& params) { return new FlashAttentionOp(params); }

}  // namespace attile
