// In place of src/cuda/kernels.cpp. The last problem is remembered, for emulated_backward to
// compute its gradients.
#include "cuda/kernels.hpp"

#include <string>
#include <vector>

#include "cuda/forward/sm90/forward_launch.hpp"
#include "cuda/generic/backward_launch.hpp"
#include "cuda/generic/forward_launch.hpp"
#include "cuda/mla_decode/generic/decode_launch.hpp"
#include "cuda/mla/attention_launch.hpp"

namespace attile::cuda {
namespace {

AttentionProblem last;
constexpr unsigned kSharedBytesOfAll = 99 << 10;  // what every GPU since sm_80 has

void run_and_remember(const AttentionProblem& p, const Plan& plan, void* workspace, const Execution& execution) {
  last = p;
  emulation::shared_limit = kSharedBytesOfAll;
  generic_forward_kernels()[0].run(p, plan, workspace, execution);
  emulation::shared_limit = emulation::kSharedBytes;
}

// An array of another call, as ctypes hands it over. null: absent.
struct Array {
  void* data;
  int64_t dtype, shape[4], stride[4];
};

View view_of(const Array& a) {
  View v;
  if (!a.data) return v;
  v.data = static_cast<char*>(a.data);
  v.dtype = static_cast<DType>(a.dtype);
  for (int i = 0; i < 4; ++i) v.shape[i] = a.shape[i], v.stride[i] = a.stride[i];
  return v;
}

}  // namespace

std::span<const Kernel> forward_kernels() {
  static const std::vector<Kernel> kernels = [] {
    std::vector<Kernel> rows(generic_forward_kernels().begin(), generic_forward_kernels().end());
    rows[0].run = run_and_remember;
    rows.insert(rows.begin(), sm90_forward_kernels().begin(), sm90_forward_kernels().end());
    return rows;
  }();
  return kernels;
}

std::span<const Kernel> mla_attention_kernels() { return generic_mla_attention_kernels(); }
std::span<const Kernel> mla_decode_kernels() { return generic_mla_decode_kernels(); }

}  // namespace attile::cuda

// Gradients of the last call of flash_attention. arrays: dout, dlse, dq, dk, dv, dbias, dsinks. Returns why not, or "".
extern "C" __attribute__((visibility("default"))) const char* emulated_backward(const attile::cuda::Array* arrays) {
  using namespace attile::cuda;
  static std::string why;
  BackwardProblem b;
  b.forward = last;
  attile::View* const views[] = {&b.dout, &b.dlse, &b.dq, &b.dk, &b.dv, &b.dbias, &b.dsinks};
  for (int i = 0; i < 7; ++i) *views[i] = view_of(arrays[i]);
  why = backward_why_not(b);
  if (!why.empty()) return why.c_str();
  std::vector<char> workspace(backward_workspace_bytes(b) + sizeof(float), static_cast<char>(0xff));
  run_backward(b, workspace.data(), nullptr);
  return why.c_str();
}
