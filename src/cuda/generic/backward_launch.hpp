// The rows of the generic backward kernels: gradients of flash_attention, with every option but normalize_output=False and pages, on every
// GPU since sm_80. Kernels of this table are given a BackwardProblem.
#pragma once

#include <span>

#include "core/kernel_table.hpp"

namespace attile::cuda {

std::span<const Kernel> generic_backward_kernels();

}  // namespace attile::cuda
