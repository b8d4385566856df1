// Plans and runs the forward kernels of one instruction set: cuts the problem into units, hands them to threads, joins splits.
#pragma once

#include <string>

#include "core/kernel_table.hpp"
#include "cpu/forward_layout.hpp"

namespace attile {

// An operation that is attention inside (MLA) takes part in every unit: it points rows at queries and outputs of its own, and gives
// the keys a maker. A unit whose keys are split passes through prepare, its parts and join; another through `whole` alone.
enum class UnitStage { whole, prepare, part, join };

struct UnitCall {
  UnitStage stage;
  Unit& unit;
  QueryRow* rows;  // [padded]
  int64_t padded, block_q;
  const ForwardItem& item;
  int64_t head;        // key head
  char* unit_scratch;  // kept from stage to stage
  char* worker_scratch;
};

class UnitHooks {
 public:
  virtual ~UnitHooks() = default;
  virtual size_t unit_bytes(const Plan& plan) const = 0;  // multiples of 64
  virtual size_t worker_bytes(const Plan& plan) const = 0;
  virtual void begin(const UnitCall& call) const = 0;
  virtual void end(const UnitCall& call) const = 0;  // out is written: after whole and join
};

std::string forward_why_not(const AttentionProblem& problem, const Config& config);
Plan plan_forward(const ForwardIsa& isa, const AttentionProblem& problem, const Config& config, int threads,
                  const UnitHooks* hooks = nullptr);
void run_forward(const ForwardIsa& isa, const AttentionProblem& problem, const Plan& plan, void* workspace,
                 const attile_executor* executor, const UnitHooks* hooks = nullptr);

}  // namespace attile
