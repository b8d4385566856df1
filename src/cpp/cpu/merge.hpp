// Attention over two disjoint sets of keys, joined:
//
//   lse = log(exp(lse_a) + exp(lse_b));  out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b
//
// An lse of -inf, or of +inf as some libraries write it, is an empty side: its out has no effect whatever it holds. Both empty:
// out 0, lse -inf. NaN stays in its row.
#pragma once

#include "core/view.hpp"

namespace attile {

// out_*: [B, T, H, Dv], any of float64, float32, float16, bfloat16; lse_*: [B, H, T, 1], float32 or float64. Weights are
// computed in lse's type. No more scratch than a few registers.
void merge_states(const View& out_a, const View& lse_a, const View& out_b, const View& lse_b, const View& out, const View& lse);

}  // namespace attile
