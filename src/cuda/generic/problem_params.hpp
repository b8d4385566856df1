// An AttentionProblem in the terms of the kernels.
#pragma once

#include "core/problem.hpp"
#include "cuda/generic/forward_params.hpp"

namespace attile::cuda::generic {

Tensor tensor_of(const View& v);
Indices indices_of(const IndexView& v);

// All but the grid (tiles, parts, splits) and scale_log2.
ForwardParams problem_params(const AttentionProblem& p);

}  // namespace attile::cuda::generic
