// The row of mla_decode_kernels() for GPUs of compute capability 9.0.
#pragma once

#include <span>

#include "core/kernel_table.hpp"

namespace attile::cuda {

std::span<const Kernel> sm90_mla_decode_kernels();

}  // namespace attile::cuda
