// In place of src/cuda/kernels.cpp: the same tables, and the generic kernels confined to the shared memory that every GPU since sm_80 has.
#include "cuda/kernels.hpp"

#include <vector>

#include "cuda/decode/sm90/launch.hpp"
#include "cuda/forward/sm90/forward_launch.hpp"
#include "cuda/generic/backward_launch.hpp"
#include "cuda/generic/forward_launch.hpp"
#include "cuda/mla_decode/generic/decode_launch.hpp"
#include "cuda/mla_decode/sm90/launch.hpp"
#include "cuda/mla/attention_launch.hpp"
#include "cuda/mla/gradients_launch.hpp"

namespace attile::cuda {
namespace {

constexpr unsigned kSharedBytesOfAll = 99 << 10;

template <const Kernel& (*row)()>
void run_confined(const AttentionProblem& p, const Plan& plan, void* workspace, const Execution& execution) {
  emulation::shared_limit = kSharedBytesOfAll;
  row().run(p, plan, workspace, execution);
  emulation::shared_limit = emulation::kSharedBytes;
}

const Kernel& forward() { return generic_forward_kernels()[0]; }
const Kernel& backward_row() { return generic_backward_kernels()[0]; }

}  // namespace

std::span<const Kernel> forward_kernels() {
  static const std::vector<Kernel> kernels = [] {
    std::vector<Kernel> rows(sm90_decode_kernels().begin(), sm90_decode_kernels().end());
    rows.insert(rows.end(), sm90_forward_kernels().begin(), sm90_forward_kernels().end());
    rows.push_back(forward());
    rows.back().run = run_confined<forward>;
    return rows;
  }();
  return kernels;
}

std::span<const Kernel> backward_kernels() {
  static const std::vector<Kernel> kernels = [] {
    std::vector<Kernel> rows{backward_row()};
    rows[0].run = run_confined<backward_row>;
    return rows;
  }();
  return kernels;
}

std::span<const Kernel> mla_attention_kernels() { return generic_mla_attention_kernels(); }
std::span<const Kernel> mla_attention_backward_kernels() { return generic_mla_attention_backward_kernels(); }
std::span<const Kernel> mla_decode_kernels() {
  static const std::vector<Kernel> kernels = [] {
    std::vector<Kernel> rows(sm90_mla_decode_kernels().begin(), sm90_mla_decode_kernels().end());
    rows.insert(rows.end(), generic_mla_decode_kernels().begin(), generic_mla_decode_kernels().end());
    return rows;
  }();
  return kernels;
}

}  // namespace attile::cuda
