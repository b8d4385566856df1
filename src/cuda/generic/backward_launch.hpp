// The generic backward: gradients of flash_attention, on every GPU since sm_80. Every option of the forward but normalize_output=False.
#pragma once

#include <string>

#include "core/problem.hpp"

namespace attile::cuda {

struct BackwardProblem {
  AttentionProblem forward;  // out and lse bound: they are read
  View dout;                 // as out
  View dlse;                 // as lse; may be absent
  View dq, dk, dv;           // as q, k, v
  View dbias;                // absent, or in the bias's own shape, [1|B, 1|Hq, 1|Nq, 1|Nk], any floating dtype; written whole where
                             // Nq and Nk are those of the arrays or 1
  View dsinks;               // absent, or float32 [1, 1, 1|Hq, n], contiguous
};

// "" when the kernels take it.
std::string backward_why_not(const BackwardProblem& problem);

size_t backward_workspace_bytes(const BackwardProblem& problem);

// Queues the kernels. The same inputs give the same bits.
void run_backward(const BackwardProblem& problem, void* workspace, void* stream);

}  // namespace attile::cuda
