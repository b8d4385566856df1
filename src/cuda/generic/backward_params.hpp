// What the generic backward kernels are told: the forward call, its results, and where the gradients go.
#pragma once

#include "cuda/generic/forward_params.hpp"

namespace attile::cuda::generic {

struct BackwardParams {
  ForwardParams f;  // out and lse are read; its grid is not used
  int32_t heads_q;
  Tensor dout, dq, dk, dv;
  const float* dlse;                        // null: none
  int64_t dlse_batch, dlse_head, dlse_row;  // in elements
  float* delta;                             // [q batch][head][row of the token axis]: sum_d dout out - dlse
  Elementwise dbias;                        // data null: none; strides zero where bias was broadcast, extents below
  int32_t dbias_shape[4];
  float* dsinks;  // null: none; [heads or 1][count]
  bool sinks_shared;
  int32_t tiles, column_parts;  // of this kernel's grid
};

}  // namespace attile::cuda::generic
