#include "core/kernel_table.hpp"

#include <cstdlib>

#include "core/check.hpp"

namespace attile {
namespace {

bool is_called(const Kernel& kernel, std::string_view name) { return name == kernel.name || name == kernel.isa; }

// cfg.kernel, else the environment's word; empty: no kernel is forced.
std::string_view forced_name(const Config& config) {
  if (!config.kernel.empty()) return config.kernel;
  const char* name = std::getenv("ATTILE_KERNEL");
  return name ? name : "";
}

std::string missing_options(uint64_t options) {
  std::string names;
  for (int i = 0; i < int{kOptionCount}; ++i)
    if (options >> i & 1) names += (names.empty() ? "" : ", ") + std::string(kOptionNames[i]);
  return names;
}

std::string objection(const Kernel& kernel, const AttentionProblem& problem, const Config& config, std::string_view forced) {
  if (!forced.empty() && !is_called(kernel, forced)) return "another kernel is forced (" + std::string(forced) + ")";
  if (!kernel.available()) return (problem.on_cuda() ? "no GPU here has " : "this CPU lacks ") + std::string(kernel.isa);
  if (const uint64_t missing = problem.options & ~kernel.honours) return "does not take " + missing_options(missing);
  return kernel.why_not(problem, config);
}

}  // namespace

std::string refusal(const Kernel& kernel, const AttentionProblem& problem, const Config& config) {
  return objection(kernel, problem, config, forced_name(config));
}

const Kernel& choose(std::span<const Kernel> table, const AttentionProblem& problem, const Config& config) {
  if (table.empty())
    throw Error(ATTILE_NOT_IMPLEMENTED, std::string(problem.function) + ": no kernel takes this problem: there is none yet for " +
                                            (problem.on_cuda() ? "CUDA" : "CPU") + " arrays");
  const std::string_view forced = forced_name(config);
  bool known = forced.empty();
  for (const Kernel& kernel : table) {
    known = known || is_called(kernel, forced);
    if (objection(kernel, problem, config, forced).empty()) return kernel;
  }
  if (!known) {
    std::string names;
    for (const Kernel& kernel : table) names += (names.empty() ? "" : ", ") + std::string(kernel.name);
    value_error(problem.function, config.kernel.empty() ? "ATTILE_KERNEL names no kernel" : "cfg.kernel names no kernel", names, std::string(forced));
  }
  std::string reasons;
  for (const Refusal& r : refusals(table, problem, config)) reasons += "\n  " + std::string(r.kernel->name) + ": " + r.reason;
  throw Error(ATTILE_NOT_IMPLEMENTED, std::string(problem.function) + ": no kernel takes this problem:" + reasons);
}

std::vector<Refusal> refusals(std::span<const Kernel> table, const AttentionProblem& problem, const Config& config) {
  std::vector<Refusal> all;
  const std::string_view forced = forced_name(config);
  for (const Kernel& kernel : table) all.push_back({&kernel, objection(kernel, problem, config, forced)});
  return all;
}

}  // namespace attile
