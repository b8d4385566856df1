// The row of decode_sm90.
#pragma once

#include <span>

#include "core/kernel_table.hpp"

namespace attile::cuda {

std::span<const Kernel> sm90_decode_kernels();

}  // namespace attile::cuda
