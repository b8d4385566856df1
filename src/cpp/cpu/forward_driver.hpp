// Plans and runs the forward kernels of one instruction set: cuts the problem into units, hands them to threads, joins splits.
#pragma once

#include <string>

#include "core/kernel_table.hpp"
#include "cpu/forward/unit.hpp"

namespace attile {

std::string forward_why_not(const AttentionProblem& problem, const Config& config);
Plan plan_forward(const ForwardIsa& isa, const AttentionProblem& problem, const Config& config, int threads);
void run_forward(const ForwardIsa& isa, const AttentionProblem& problem, const Plan& plan, void* workspace,
                 const attile_executor* executor);

}  // namespace attile
