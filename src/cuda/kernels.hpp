// The kernels of libattile_cuda. A family of kernels has a header <family>/<what>_launch.hpp with its rows; kernels.cpp puts them
// in order.
#pragma once

#include <span>

#include "core/kernel_table.hpp"

namespace attile::cuda {

// Fastest first.
std::span<const Kernel> forward_kernels();
std::span<const Kernel> backward_kernels();
std::span<const Kernel> mla_attention_kernels();
std::span<const Kernel> mla_attention_backward_kernels();
std::span<const Kernel> mla_decode_kernels();

}  // namespace attile::cuda
