// A kernel is a row: what it is called, which optional fields it honours, why it refuses a problem, how it plans, how it runs.
// choose() takes the first row that has no objection; when none is left, the error lists them all.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attile/attile.h"
#include "core/problem.hpp"

namespace attile {

// How MLA meets its keys: made of the latents tile by tile, or the queries brought to the latents.
enum class MlaStrategy : uint8_t { none, rebuild, absorb };

// What the caller forces (0, none and empty: the heuristic decides).
struct Config {
  static constexpr int64_t kMaxBlock = 4096, kMaxSplits = 1024;  // validate_config() sees to them
  int64_t block_q = 0, block_k = 0, num_splits = 0;
  std::string_view kernel;
  MlaStrategy strategy = MlaStrategy::none;
};

// Where a call runs: CPU kernels on the executor (null: the library's pool), CUDA kernels on the stream of the device.
struct Execution {
  const attile_executor* executor = nullptr;
  void* stream = nullptr;  // a cudaStream_t; null: the legacy default stream
  int device = 0;
};

struct Kernel;

// Immutable once made; holds no pointer of the problem.
struct Plan {
  const Kernel* kernel = nullptr;
  int64_t block_q = 0;     // query rows (query positions x heads of a group) a block
  int64_t block_k = 0;     // keys a tile
  int64_t num_splits = 1;  // parts of the key range, joined deterministically; depends on shapes only
  int workers = 1;         // most threads that run() uses
  size_t workspace_bytes = 0;
  MlaStrategy strategy = MlaStrategy::none;  // of kernels that take latents
  const Kernel* inner = nullptr;             // of kernels that give their pieces to another
};

struct Kernel {
  const char* name;  // e.g. "forward_avx512"
  const char* isa;   // e.g. "avx512", "sm80"; ATTILE_KERNEL takes either
  uint64_t honours;  // set of Option
  bool (*available)();  // this CPU runs it; a CUDA kernel: one of the GPUs does, and why_not judges the problem's own
  std::string (*why_not)(const AttentionProblem&, const Config&);  // "" when it takes the problem
  Plan (*plan)(const AttentionProblem&, const Config&, int threads);
  // On CUDA: only queues work on the stream. Index arrays lie on the device (IndexView::on_device).
  void (*run)(const AttentionProblem&, const Plan&, void* workspace, const Execution&);
};

// Fastest first; defined in cpu/kernels.cpp. Those of CUDA are in the table of src/cuda/entry.hpp.
std::span<const Kernel> cpu_forward_kernels();
std::span<const Kernel> cpu_mla_kernels();  // of problems with latents; in cpu/mla/kernels.cpp

struct Refusal {
  const Kernel* kernel;
  std::string reason;
};

// Why this kernel does not take the problem: availability, options, forced name, then its own word. "" when it does.
std::string refusal(const Kernel& kernel, const AttentionProblem& problem, const Config& config);

// The first kernel that takes the problem; throws NotImplementedError with every reason, ValueError for an unknown name.
const Kernel& choose(std::span<const Kernel> table, const AttentionProblem& problem, const Config& config);

// The same question asked of every kernel, for explain().
std::vector<Refusal> refusals(std::span<const Kernel> table, const AttentionProblem& problem, const Config& config);

}  // namespace attile
