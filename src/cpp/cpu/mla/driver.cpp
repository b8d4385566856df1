#include "cpu/mla/driver.hpp"

#include <algorithm>

#include "cpu/mla/strategies.hpp"

namespace attile {
namespace {

int64_t ceil_div(int64_t x, int64_t by) { return (x + by - 1) / by; }

// A rebuilt tile shall serve as many rows as there are: at rank 512, 128 + 64, 128 rebuilding costs as much as 410 rows do. Beyond the
// L2 a row costs 1.3 KB of traffic a tile of keys, and 46,000 multiply-adds.
constexpr int64_t kRebuildRows = 2048, kFewestRebuildRows = 512;

// Blocks as large as `largest`, but 8 units where that leaves `smallest` rows.
int64_t choose_block_q(const AttentionProblem& inner, int64_t largest, int64_t smallest) {
  constexpr int64_t kUnits = 8;
  const int64_t sequences = inner.batch * inner.heads_k, longest = inner.q_seqs.longest * inner.group;
  int64_t rows = largest;
  while (rows > smallest && sequences * ceil_div(longest, rows) < kUnits) rows /= 2;
  return rows;
}

// The one with fewer multiply-adds; the middle row of a sequence speaks for all of them.
MlaStrategy choose_strategy(const AttentionProblem& p) {
  const AttentionProblem inner = rebuilt_problem(p);
  const Latents& latents = p.latents;
  const int64_t block_q = choose_block_q(inner, kRebuildRows, kFewestRebuildRows);
  const double weights = static_cast<double>(latents.rank * (latents.nope_dim + p.head_dim_v));
  double rebuild = 0, absorb = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t n = p.q_seqs.length(b);
    if (n == 0) continue;
    const Mask mask = p.mask(b);
    const Range middle = mask.keys(n / 2, n / 2 + 1);
    const double pairs = static_cast<double>(n) * static_cast<double>(middle.end - middle.begin);
    double rebuilt = 0;  // keys of all blocks of a key head
    for (int64_t row = 0; row < n * inner.group; row += block_q) {
      const Range keys = mask.keys(row / inner.group, (std::min(row + block_q, n * inner.group) - 1) / inner.group + 1);
      rebuilt += static_cast<double>(keys.end - keys.begin);
    }
    rebuild += static_cast<double>(inner.heads_k) * rebuilt * weights +
               static_cast<double>(p.heads_q) * pairs * static_cast<double>(p.head_dim + p.head_dim_v);
    absorb += static_cast<double>(p.heads_q) *
              (pairs * static_cast<double>(2 * latents.rank + latents.rope_dim) + static_cast<double>(n) * weights);
  }
  return absorb < rebuild ? MlaStrategy::absorb : MlaStrategy::rebuild;
}

// Calls f(inner problem, hooks) of a strategy.
template <class F>
auto with_strategy(MlaStrategy strategy, const MlaIsa& isa, const AttentionProblem& p, F f) {
  if (strategy == MlaStrategy::absorb) return f(absorbed_problem(p), AbsorbHooks(p, isa));
  return f(rebuilt_problem(p), RebuildHooks(p, isa));
}

}  // namespace

std::string mla_why_not(const AttentionProblem& problem, const Config& config) { return forward_why_not(rebuilt_problem(problem), config); }

Plan plan_mla(const MlaIsa& isa, const AttentionProblem& p, const Config& config, int threads) {
  const MlaStrategy strategy = config.strategy == MlaStrategy::none ? choose_strategy(p) : config.strategy;
  Plan plan = with_strategy(strategy, isa, p, [&](const AttentionProblem& inner, const UnitHooks& hooks) {
    Config blocks = config;
    if (!blocks.block_q)
      blocks.block_q =
          strategy == MlaStrategy::absorb ? choose_block_q(inner, 512, 128) : choose_block_q(inner, kRebuildRows, kFewestRebuildRows);
    return plan_forward(*isa.forward, inner, blocks, threads, &hooks);
  });
  plan.strategy = strategy;
  return plan;
}

void run_mla(const MlaIsa& isa, const AttentionProblem& p, const Plan& plan, void* workspace, const attile_executor* executor) {
  with_strategy(plan.strategy, isa, p, [&](const AttentionProblem& inner, const UnitHooks& hooks) {
    run_forward(*isa.forward, inner, plan, workspace, executor, &hooks);
  });
}

}  // namespace attile
