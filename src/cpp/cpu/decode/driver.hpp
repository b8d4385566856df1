// Plans and runs the decode kernels of one instruction set: cuts the keys into parts, hands them to threads, joins them.
#pragma once

#include <string>

#include "core/kernel_table.hpp"
#include "cpu/decode/unit.hpp"

namespace attile {

std::string decode_why_not(const AttentionProblem& problem, const Config& config);
Plan plan_decode(const DecodeIsa& isa, const AttentionProblem& problem, const Config& config, int threads);
void run_decode(const DecodeIsa& isa, const AttentionProblem& problem, const Plan& plan, void* workspace, const attile_executor* executor);

}  // namespace attile
