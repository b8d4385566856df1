// mla_decode as an operation, on the CPU or on CUDA, and the plan of a batch that many operations share.
#include <string>

#include "capi/host_indices.hpp"
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
    if (problem.on_cuda()) cuda_ = &cuda_library(function, problem.device_id);
    const Kernel& kernel = choose(kernels(), problem, config);
    plan = kernel.plan(problem, config, num_threads());
    plan.kernel = &kernel;
    const struct {
      const char* name;
      const attile_tensor* t;
    } given[] = {{"q_nope", p.q_nope},
                 {"q_pe", p.q_pe},
                 {p.plan ? "ckv_cache" : "ckv", p.ckv},
                 {p.plan ? "kpe_cache" : "kpe", p.kpe},
                 {"softmax_aux", p.softmax_aux}};
    for (const auto& [name, t] : given) add_input(name, t);
    add_index("kv_lens", p.kv_lens, problem.k_seqs.lens);
    add_index("page_table", p.page_table, problem.page_table);
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

  // The kernel's own part first, then the index arrays.
  size_t workspace_bytes() const override { return host_indices_.empty() ? plan.workspace_bytes : kernel_bytes() + host_indices_.bytes(); }

  void run(void* workspace, const Execution& execution) override {
    if (!cuda_) return plan.kernel->run(problem, plan, workspace, execution);
    on_cuda_device(*cuda_, function, execution.device, [&] {
      if (!host_indices_.empty()) host_indices_.copy(*cuda_, function, execution, static_cast<char*>(workspace) + kernel_bytes());
      plan.kernel->run(problem, plan, workspace, execution);
    });
  }

  std::string explain() const override {
    Json json;
    json.open().field("function", function).field("kernel", plan.kernel->name).field("isa", plan.kernel->isa);
    json.key("plan").open().field("block_q", plan.block_q).field("block_k", plan.block_k).field("num_splits", plan.num_splits);
    json.field("workers", int64_t{plan.workers}).close();
    json.field("workspace_bytes", static_cast<int64_t>(plan.workspace_bytes));
    json.key("refused").open('[');
    for (const Refusal& r : refusals(kernels(), problem, config)) {
      if (r.kernel == plan.kernel) continue;
      const std::string reason = r.reason.empty() ? std::string(plan.kernel->name) + " comes first" : r.reason;
      json.open().field("kernel", r.kernel->name).field("reason", reason).close();
    }
    json.close(']').close();
    return json.text();
  }

 private:
  size_t kernel_bytes() const { return (plan.workspace_bytes + 255) / 256 * 256; }
  std::span<const Kernel> kernels() const { return cuda_ ? cuda_->mla_decode_kernels : cpu_mla_decode_kernels(); }

  // One that lies on the host beside CUDA data goes to the device with each run.
  template <class AnyView>
  void add_index(const char* name, const attile_tensor* array, AnyView& view) {
    add_input(name, array);
    if (cuda_) host_indices_.add(name, array, view);
  }

  const CudaLibrary* cuda_ = nullptr;  // where the arrays are on CUDA
  HostIndices host_indices_;
};

}  // namespace

attile_op* create_mla_decode(const attile_mla_decode_params& params) { return new MlaDecodeOp(params); }
attile_mla_plan* create_mla_plan(const attile_mla_plan_params& params) { return new attile_mla_plan{validate(params)}; }

void copy_mla_plan(MlaDecodePlan& plan, int32_t device_id, void* memory, void* stream) {
  constexpr const char* kName = "attile_mla_plan_to_device";
  if (plan.device_type != 1) value_error(kName, "plan must be made of host arrays", "a plan on the host", "one on a device");
  const CudaLibrary& cuda = cuda_library(kName, device_id);
  on_cuda_device(cuda, kName, device_id, [&] {
    if (cuda.is_capturing(stream))
      value_error(kName, "plan must be on the device while a graph is captured", "index arrays on the device, in buffers that stay",
                  "a plan of host arrays");
    cuda.copy_to_device(memory, plan.storage.data(), plan.storage.size() * sizeof(int64_t), stream);
  });
  plan.copies = indices_in(plan, static_cast<const char*>(memory), true);
  plan.copies_id = device_id;
}

}  // namespace attile
