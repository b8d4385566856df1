// The plan of a batch behind the C interface.
#pragma once

#include "core/mla_decode_problem.hpp"

struct attile_mla_plan {
  attile::MlaDecodePlan plan;
};

namespace attile {

attile_mla_plan* create_mla_plan(const attile_mla_plan_params& params);
void copy_mla_plan(MlaDecodePlan& plan, int32_t device_id, void* memory, void* stream);
void append_paged_mla_kv_cache(const attile_append_paged_mla_kv_cache_params& params, void* stream);

}  // namespace attile
