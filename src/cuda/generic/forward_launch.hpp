// The rows of the generic forward kernels: forward_generic_sm80 takes every option on every GPU since sm_80.
#pragma once

#include <span>

#include "core/kernel_table.hpp"

namespace attile::cuda {

std::span<const Kernel> generic_forward_kernels();

}  // namespace attile::cuda
