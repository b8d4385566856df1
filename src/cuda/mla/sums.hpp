// float32 sums of gradients to which many pieces add, and what becomes of them.
#pragma once

#include "core/view.hpp"

namespace attile::cuda::generic {

// sums[b, t, 0, :] += the sum over h of from[b, t, h, :].
void add_heads(const View& from, const View& sums, void* stream);

// to = sums, rounded to its dtype. Sums without data are zeros.
void round_sums(const View& sums, const View& to, void* stream);

}  // namespace attile::cuda::generic
