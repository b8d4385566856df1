// The row of the Hopper forward kernels: forward_sm90.
#pragma once

#include <span>

#include "core/kernel_table.hpp"

namespace attile::cuda {

std::span<const Kernel> sm90_forward_kernels();

}  // namespace attile::cuda
