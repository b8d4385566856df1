// mla_decode as an operation, and the plan of a batch that many operations share.
#include <string>

#include "capi/json.hpp"
#include "capi/mla_plan.hpp"
#include "capi/op.hpp"
#include "core/tensor_checks.hpp"
#include "core/validate.hpp"
#include "cpu/threads.hpp"

namespace attile {
namespace {

struct MlaDecodeOp final : attile_op {
  MlaDecodeProblem problem;
  Config config;
  Plan plan;
  std::string forced;  // owns config.kernel

  explicit MlaDecodeOp(const attile_mla_decode_params& p)
      : attile_op(p.plan ? "BatchMLAPagedAttentionWrapper.run" : "mla_decode"), problem(validate(p, p.plan ? &p.plan->plan : nullptr)) {
    config = validate_config(function, p.config);
    forced = config.kernel;
    config.kernel = forced;
    const Kernel& kernel = choose(cpu_mla_decode_kernels(), problem, config);
    plan = kernel.plan(problem, config, num_threads());
    plan.kernel = &kernel;
    const struct {
      const char* name;
      const attile_tensor* t;
    } given[] = {{"q_nope", p.q_nope},
                 {"q_pe", p.q_pe},
                 {p.plan ? "ckv_cache" : "ckv", p.ckv},
                 {p.plan ? "kpe_cache" : "kpe", p.kpe},
                 {"kv_lens", p.kv_lens},
                 {"page_table", p.page_table},
                 {"ckv_scale", p.ckv_scale},
                 {"softmax_aux", p.softmax_aux}};
    for (const auto& [name, t] : given) add_input(name, t);
    const attile_tensor& q = *p.q_nope;
    const DType lse_type = accumulator_of(problem.dtype);
    if (p.plan) {
      add_output("out", problem.dtype, q, {q.shape[0], problem.heads_q, problem.latent});
      add_output("lse", lse_type, q, {q.shape[0], problem.heads_q});
    } else {
      add_output("out", problem.dtype, q, {q.shape[0], q.shape[1], problem.heads_q, problem.latent});
      add_output("lse", lse_type, q, {q.shape[0], problem.heads_q, q.shape[1]});
    }
    if (!problem.has(kLse)) num_outputs = 1;
  }

  void bind_outputs(const attile_tensor* const* given, int32_t count) override {
    problem.out = view_of(*given[0]);
    if (count == 1) return;
    problem.lse = lse_view_of(*given[1]);
    if (given[1]->rank == 2) std::swap(problem.lse.shape[1], problem.lse.shape[2]), std::swap(problem.lse.stride[1], problem.lse.stride[2]);
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
    for (const Refusal& r : refusals(cpu_mla_decode_kernels(), problem, config)) {
      if (r.kernel == plan.kernel) continue;
      const std::string reason = r.reason.empty() ? std::string(plan.kernel->name) + " comes first" : r.reason;
      json.open().field("kernel", r.kernel->name).field("reason", reason).close();
    }
    json.close(']').close();
    return json.text();
  }
};

}  // namespace

attile_op* create_mla_decode(const attile_mla_decode_params& params) { return new MlaDecodeOp(params); }
attile_mla_plan* create_mla_plan(const attile_mla_plan_params& params) { return new attile_mla_plan{validate(params)}; }

}  // namespace attile
