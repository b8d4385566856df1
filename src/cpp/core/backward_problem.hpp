// BackwardProblem: a forward problem with its results, out and lse, which are read, the gradients of those, and where the gradients of
// its inputs go. With P = exp(S - lse), delta = sum_d dout out - dlse:
//
//   dS = P (dropout(dout V^T) - delta), through the cap
//   dq = softmax_scale dS K;  dk = softmax_scale dS^T Q;  dv = dropout(P)^T dout;  dbias = dS;  dsinks = -sum exp(sink - lse) delta
//
// It is an AttentionProblem, so that kernels of gradients are rows like any other; they are given nothing else.
#pragma once

#include "core/problem.hpp"

namespace attile {

// Of a problem with latents: as the views of Latents, but for rope parts that heads share, [B, T, 1, rope_dim].
struct LatentGradients {
  View latent, w_kc, w_vc, q_rope, k_rope;
};

struct BackwardProblem : AttentionProblem {
  View dout;        // as out
  View dlse;        // as lse; may be absent
  View dq, dk, dv;  // as q, k, v; bound later; of a problem with latents dq alone, and where it has queries in two parts, of the first
  LatentGradients of_latents;
  View dbias;       // absent, or in the bias's own shape, [1|B, 1|Hq, 1|Nq, 1|Nk], reduced over what was broadcast; written whole
  View dsinks;      // absent, or [1, 1, 1|Hq, n], likewise
  bool adds = false;           // dbias and dsinks are added to what is there: another problem's part of the same gradients
  bool deterministic = false;  // the same inputs give the same bits
};

inline const BackwardProblem& backward(const AttentionProblem& problem) { return static_cast<const BackwardProblem&>(problem); }

}  // namespace attile
