// The kernels of libattile_cuda, fastest first.
#include "cuda/kernels.hpp"

#include <vector>

#include "cuda/generic/backward_launch.hpp"
#include "cuda/generic/forward_launch.hpp"
#include "cuda/mla_decode/generic/decode_launch.hpp"
#include "cuda/mla_decode/sm90/launch.hpp"
#include "cuda/mla/attention_launch.hpp"

namespace attile::cuda {

std::span<const Kernel> forward_kernels() { return generic_forward_kernels(); }
std::span<const Kernel> backward_kernels() { return generic_backward_kernels(); }
std::span<const Kernel> mla_attention_kernels() { return generic_mla_attention_kernels(); }
std::span<const Kernel> mla_decode_kernels() {
  static const std::vector<Kernel> kernels = [] {
    std::vector<Kernel> rows(sm90_mla_decode_kernels().begin(), sm90_mla_decode_kernels().end());
    rows.insert(rows.end(), generic_mla_decode_kernels().begin(), generic_mla_decode_kernels().end());
    return rows;
  }();
  return kernels;
}

}  // namespace attile::cuda
