// Plans and runs MLA on one instruction set: chooses between rebuilding and absorbing by counting, and hands the attention that is left
// to the forward driver.
#pragma once

#include <string>

#include "core/kernel_table.hpp"
#include "cpu/mla/isa.hpp"

namespace attile {

std::string mla_why_not(const AttentionProblem& problem, const Config& config);
Plan plan_mla(const MlaIsa& isa, const AttentionProblem& problem, const Config& config, int threads);
void run_mla(const MlaIsa& isa, const AttentionProblem& problem, const Plan& plan, void* workspace, const attile_executor* executor);

}  // namespace attile
