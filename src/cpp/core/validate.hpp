// The one validator: public parameters in, problems out. Throws Error before anything is computed; reads index arrays, never
// the data of q, k and v.
#pragma once

#include "attile/attile.h"
#include "core/backward_problem.hpp"
#include "core/kernel_table.hpp"
#include "core/mla_decode_problem.hpp"
#include "core/problem.hpp"

namespace attile {

// function: in messages.
AttentionProblem validate(const attile_flash_attention_params& params, const char* function = "flash_attention");
BackwardProblem validate(const attile_flash_attention_backward_params& params);
AttentionProblem validate(const attile_flash_attention_with_kvcache_params& params);
AttentionProblem validate(const attile_mla_attention_params& params, const char* function = "mla_attention");
BackwardProblem validate(const attile_mla_attention_backward_params& params);
Config validate_config(const char* function, const attile_config& config);

// The arrays of merge_states, broadcast to nothing: out [B,T,H,Dv], lse [B,H,T,1].
struct MergeProblem {
  View out_a, lse_a, out_b, lse_b;
};
MergeProblem validate(const attile_merge_states_params& params);

// With a plan: the arrays of one run of a planned batch.
MlaDecodeProblem validate(const attile_mla_decode_params& params, const MlaDecodePlan* plan);
MlaDecodePlan validate(const attile_mla_plan_params& params);
// A host plan's index arrays in a copy of its storage.
MlaDecodePlan::Indices indices_in(const MlaDecodePlan& plan, const char* storage, bool on_device);

// Shape, dtype, device of an output against its specification, contiguous last dimension, no overlap with itself.
void validate_output(const char* function, const char* name, const attile_tensor& given, const attile_tensor& expected);

}  // namespace attile
