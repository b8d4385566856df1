// Plans and runs MLA decoding with the kernels of one instruction set: cuts rows and keys into units, hands them to threads, joins the
// parts of a key range.
#pragma once

#include <string>

#include "core/mla_decode_problem.hpp"
#include "cpu/mla_decode/unit.hpp"

namespace attile {

std::string mla_decode_why_not(const AttentionProblem& problem, const Config& config);
Plan plan_mla_decode(const MlaDecodeIsa& isa, const MlaDecodeProblem& problem, const Config& config, int threads);
void run_mla_decode(const MlaDecodeIsa& isa, const MlaDecodeProblem& problem, const Plan& plan, void* workspace,
                    const attile_executor* executor);

}  // namespace attile
