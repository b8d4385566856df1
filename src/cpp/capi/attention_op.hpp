// What the attention operations share: a problem, the kernel that takes it, its plan.
#pragma once

#include <string>

#include "capi/host_indices.hpp"
#include "capi/op.hpp"
#include "core/problem.hpp"

namespace attile {

struct AttentionOp : attile_op {
  AttentionProblem problem;
  Config config;
  Plan plan;

  AttentionOp(const AttentionProblem& valid, const attile_config& given, MlaStrategy strategy = MlaStrategy::none)
      : AttentionOp(valid, given, strategy, nullptr) {}
  // Of kernels that only CUDA has. asked() is to be overridden where they are given more than an AttentionProblem.
  AttentionOp(const AttentionProblem& valid, const attile_config& given, std::span<const Kernel> CudaLibrary::*table,
              MlaStrategy strategy = MlaStrategy::none)
      : AttentionOp(valid, given, strategy, table) {}
  // out and lse for a query of rank 4 or 3; to be called when the inputs are added.
  void add_outputs(const attile_tensor& query);

  void bind_outputs(const attile_tensor* const* given, int32_t count) override;
  size_t workspace_bytes() const override;
  void run(void* workspace, const Execution& execution) override;
  std::string explain() const override;
  virtual const AttentionProblem& asked() const { return problem; }  // what the kernel is given

 protected:
  // An index array of the problem: one that lies on the host beside CUDA data goes to the device with each run.
  template <class AnyView>
  void add_index(const char* name, const attile_tensor* array, AnyView& view) {
    add_input(name, array);
    if (cuda_) host_indices_.add(name, array, view);
  }

 private:
  size_t kernel_bytes() const { return (plan.workspace_bytes + 255) / 256 * 256; }
  AttentionOp(const AttentionProblem& valid, const attile_config& given, MlaStrategy strategy, std::span<const Kernel> CudaLibrary::*table);
  std::span<const Kernel> kernels() const {
    if (table_) return cuda_ ? cuda_->*table_ : std::span<const Kernel>{};
    if (problem.has(kLatents)) return cuda_ ? cuda_->mla_attention_kernels : cpu_mla_kernels();
    return cuda_ ? cuda_->forward_kernels : cpu_forward_kernels();
  }

  const CudaLibrary* cuda_ = nullptr;  // where the arrays are on CUDA
  std::span<const Kernel> CudaLibrary::*table_;  // null: the tables of forward kernels
  HostIndices host_indices_;
  std::string forced_;  // owns config.kernel
};

}  // namespace attile
