// What the generic backward kernels are told: the forward call, its results, and where the gradients go.
#pragma once

#include "cuda/generic/forward_params.hpp"

namespace attile::cuda::generic {

struct BackwardParams {
  ForwardParams f;  // out is read; its lse and its grid are not used
  int32_t heads_q;
  Tensor dout, dq, dk, dv;
  const char *lse, *dlse;  // dlse null: none; strides in bytes
  int64_t lse_batch, lse_head, lse_row, dlse_batch, dlse_head, dlse_row;
  float *row_lse, *delta;  // [q batch][head][row of the token axis]: lse, and sum_d dout out - dlse
  float* sums;             // null, or dQ without its factor in float32: [tile of 64 queries][head][64 x dims], see backward_joint.cuh
  int32_t sums_tiles;      // tiles of a sequence that is not packed
  Elementwise dbias;                        // data null: none; strides zero where bias was broadcast, extents below
  int32_t dbias_shape[4];
  Elementwise dsinks;  // data null: none; only head (row) and key are used: [heads or 1][count]
  bool sinks_shared;
  bool adds;  // dbias and dsinks to what is there
  int32_t tiles, column_parts;  // of this kernel's grid
};

}  // namespace attile::cuda::generic
