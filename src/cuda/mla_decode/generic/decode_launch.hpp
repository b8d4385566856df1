// The rows of the generic mla_decode kernels: mla_decode_generic_sm80 takes every option on every GPU since sm_80.
#pragma once

#include <span>

#include "core/kernel_table.hpp"

namespace attile::cuda {

std::span<const Kernel> generic_mla_decode_kernels();

}  // namespace attile::cuda
