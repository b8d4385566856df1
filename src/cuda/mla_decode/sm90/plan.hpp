// The plan kernel: see plan.cuh.
#pragma once

#include "cuda/mla_decode/sm90/params.hpp"

namespace attile::cuda::mla_sm90 {

constexpr int kMaxParts = 256, kMaxBatch = 1 << 15;

void launch_plan(const Params& p, void* stream);

}  // namespace attile::cuda::mla_sm90
