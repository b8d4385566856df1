// append_paged_mla_kv_cache on a GPU.
#pragma once

#include "core/paged_append.hpp"

namespace attile::cuda {

void append_paged(const PagedAppend& append, void* stream);

}  // namespace attile::cuda
