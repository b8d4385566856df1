// merge_states as an operation.
#include <string>

#include "capi/cuda_library.hpp"
#include "capi/json.hpp"
#include "capi/op.hpp"
#include "core/tensor_checks.hpp"
#include "core/validate.hpp"
#include "cpu/merge.hpp"

namespace attile {
namespace {

struct MergeStatesOp final : attile_op {
  MergeProblem problem;
  View out, lse;
  const CudaLibrary* cuda = nullptr;

  explicit MergeStatesOp(const attile_merge_states_params& p) : attile_op("merge_states"), problem(validate(p)) {
    add_input("out_a", p.out_a);
    add_input("lse_a", p.lse_a);
    add_input("out_b", p.out_b);
    add_input("lse_b", p.lse_b);
    if (p.out_a->device_type == 2) cuda = &cuda_library(function, p.out_a->device_id);
    const int64_t* s = p.out_a->shape;
    add_output("out", problem.out_a.dtype, *p.out_a, {s[0], s[1], s[2], s[3]});
    add_output("lse", problem.lse_a.dtype, *p.out_a, {s[0], s[2], s[1]});
  }

  void bind_outputs(const attile_tensor* const* given, int32_t count) override {
    if (count < 2) throw Error(ATTILE_VALUE_ERROR, "merge_states: out and lse are both required");
    out = view_of(*given[0]);
    lse = lse_view_of(*given[1]);
  }

  void run(void*, const Execution& execution) override {
    const auto& [out_a, lse_a, out_b, lse_b] = problem;
    if (!cuda) return merge_states(out_a, lse_a, out_b, lse_b, out, lse);
    on_cuda_device(*cuda, function, execution.device, [&] { cuda->merge_states(out_a, lse_a, out_b, lse_b, out, lse, execution.stream); });
  }

  std::string explain() const override {
    Json json;
    json.open().field("function", function).field("kernel", "merge_states").field("workspace_bytes", int64_t{0}).key("refused").open('[').close(']').close();
    return json.text();
  }
};

}  // namespace

attile_op* create_merge_states(const attile_merge_states_params& params) { return new MergeStatesOp(params); }

}  // namespace attile
