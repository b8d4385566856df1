// What the attention operations share: a problem, the kernel that takes it, its plan.
#pragma once

#include <string>

#include "capi/op.hpp"
#include "core/problem.hpp"

namespace attile {

struct AttentionOp : attile_op {
  AttentionProblem problem;
  Config config;
  Plan plan;

  AttentionOp(const AttentionProblem& valid, const attile_config& given);
  // out and lse for a query of rank 4 or 3; to be called when the inputs are added.
  void add_outputs(const attile_tensor& query);

  void bind_outputs(const attile_tensor* const* given, int32_t count) override;
  size_t workspace_bytes() const override { return plan.workspace_bytes; }
  void run(void* workspace, const Execution& execution) override { plan.kernel->run(problem, plan, workspace, execution); }
  std::string explain() const override;

 private:
  std::string forced_;  // owns config.kernel
};

}  // namespace attile
