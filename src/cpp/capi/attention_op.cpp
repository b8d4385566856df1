#include "capi/attention_op.hpp"

#include "capi/json.hpp"
#include "core/tensor_checks.hpp"
#include "core/validate.hpp"
#include "cpu/threads.hpp"

namespace attile {

AttentionOp::AttentionOp(const AttentionProblem& valid, const attile_config& given, MlaStrategy strategy,
                         std::span<const Kernel> CudaLibrary::*table)
    : attile_op(valid.function), problem(valid), table_(table) {
  config = validate_config(function, given);
  config.strategy = strategy;
  forced_ = config.kernel;
  config.kernel = forced_;
  if (problem.on_cuda()) cuda_ = &cuda_library(function, problem.device_id);
  const Kernel& kernel = choose(kernels(), valid, config);
  plan = kernel.plan(valid, config, num_threads());
  plan.kernel = &kernel;
}

void AttentionOp::add_outputs(const attile_tensor& q) {
  const DType lse_type = accumulator_of(problem.dtype), out_type = problem.dtype == DType::f8e4m3 ? DType::bf16 : problem.dtype;
  if (q.rank == 4) {
    add_output("out", out_type, q, {q.shape[0], q.shape[1], problem.heads_q, problem.head_dim_v});
    add_output("lse", lse_type, q, {q.shape[0], problem.heads_q, q.shape[1]});
  } else {
    add_output("out", out_type, q, {q.shape[0], problem.heads_q, problem.head_dim_v});
    add_output("lse", lse_type, q, {problem.heads_q, q.shape[0]});
  }
  if (!problem.has(kLse)) num_outputs = 1;
}

void AttentionOp::bind_outputs(const attile_tensor* const* given, int32_t count) {
  problem.out = view_of(*given[0]);
  if (count > 1) problem.lse = lse_view_of(*given[1]);
}

// The kernel's own part first, then the index arrays.
size_t AttentionOp::workspace_bytes() const { return host_indices_.empty() ? plan.workspace_bytes : kernel_bytes() + host_indices_.bytes(); }

void AttentionOp::run(void* workspace, const Execution& execution) {
  if (!cuda_) return plan.kernel->run(asked(), plan, workspace, execution);
  on_cuda_device(*cuda_, function, execution.device, [&] {
    if (!host_indices_.empty()) host_indices_.copy(*cuda_, function, execution, static_cast<char*>(workspace) + kernel_bytes());
    plan.kernel->run(asked(), plan, workspace, execution);
  });
}

std::string AttentionOp::explain() const {
  Json json;
  json.open().field("function", function).field("kernel", plan.kernel->name).field("isa", plan.kernel->isa);
  json.key("plan").open().field("block_q", plan.block_q).field("block_k", plan.block_k).field("num_splits", plan.num_splits);
  if (plan.strategy != MlaStrategy::none) json.field("strategy", plan.strategy == MlaStrategy::absorb ? "absorb" : "rebuild");
  json.field("workers", int64_t{plan.workers}).close();
  json.field("workspace_bytes", static_cast<int64_t>(plan.workspace_bytes));
  json.key("refused").open('[');
  for (const Refusal& r : refusals(kernels(), asked(), config)) {
    if (r.kernel == plan.kernel) continue;
    const std::string reason = r.reason.empty() ? std::string(plan.kernel->name) + " comes first" : r.reason;
    json.open().field("kernel", r.kernel->name).field("reason", reason).close();
  }
  json.close(']').close();
  return json.text();
}

}  // namespace attile
