// Attention over disjoint sets of keys, joined on the GPU: what cpu/merge.hpp says, queued on a stream.
#pragma once

#include "core/view.hpp"

namespace attile::cuda {

// out_*: [B, T, H, Dv], any of float64, float32, float16, bfloat16; lse_*: [B, H, T, 1], float32 (float64 for float64), any strides
// whose last is 1. Runs on the current device.
void merge_states(const View& out_a, const View& lse_a, const View& out_b, const View& lse_b, const View& out, const View& lse,
                  void* stream);

}  // namespace attile::cuda
