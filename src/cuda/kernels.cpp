// The kernels of libattile_cuda, fastest first.
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

std::vector<Kernel> joined(std::span<const Kernel> first, std::span<const Kernel> then) {
  std::vector<Kernel> rows(first.begin(), first.end());
  rows.insert(rows.end(), then.begin(), then.end());
  return rows;
}

}  // namespace

std::span<const Kernel> forward_kernels() {
  static const std::vector<Kernel> kernels = joined(joined(sm90_decode_kernels(), sm90_forward_kernels()), generic_forward_kernels());
  return kernels;
}
std::span<const Kernel> backward_kernels() { return generic_backward_kernels(); }
std::span<const Kernel> mla_attention_kernels() { return generic_mla_attention_kernels(); }
std::span<const Kernel> mla_attention_backward_kernels() { return generic_mla_attention_backward_kernels(); }
std::span<const Kernel> mla_decode_kernels() {
  static const std::vector<Kernel> kernels = joined(sm90_mla_decode_kernels(), generic_mla_decode_kernels());
  return kernels;
}

}  // namespace attile::cuda
