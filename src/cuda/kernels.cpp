// The kernels of libattile_cuda, fastest first.
#include "cuda/kernels.hpp"

#include "cuda/generic/forward_launch.hpp"
#include "cuda/mla_decode/generic/decode_launch.hpp"
#include "cuda/mla/attention_launch.hpp"

namespace attile::cuda {

std::span<const Kernel> forward_kernels() { return generic_forward_kernels(); }
std::span<const Kernel> mla_attention_kernels() { return generic_mla_attention_kernels(); }
std::span<const Kernel> mla_decode_kernels() { return generic_mla_decode_kernels(); }

}  // namespace attile::cuda
