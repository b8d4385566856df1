// Rows of one array behind or beside those of another: rope parts behind keys and queries that were made.
#pragma once

#include "core/view.hpp"

namespace attile::cuda::generic {

// to[b, t, h, :] = from[b, t, h, :], all of `to`. Both contiguous in the last dimension, of one dtype.
void copy_rows(const View& from, const View& to, void* stream);

}  // namespace attile::cuda::generic
