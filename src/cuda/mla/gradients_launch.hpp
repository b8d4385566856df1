// The rows of mla_attention_backward: mla_backward_generic_sm80 takes every option on every GPU since sm_80. A piece (pieces.hpp) has its keys and
// values made again and is given to the backward kernels, whatever strategy the forward call chose:
//
//   rebuild    K, V, and queries that lie in two arrays                              attention_launch.hpp
//   attention  dQ, dK, dV, the piece's part of dbias and dsinks                       the first backward kernel that takes the piece
//   products   dlatent += dK w_kc^T + dV w_vc^T;  dw_kc += latent^T dK;  dw_vc += latent^T dV
//   copy, add  rope parts: of each head where they go, of all heads into a sum
//
// dK and dV are rounded once to the element type, as K and V are. What several pieces add to are float32 sums in the workspace, rounded when all
// have. One stream, and each sum by one block: bits repeat where those of the attention do.
#pragma once

#include <span>

#include "core/kernel_table.hpp"

namespace attile::cuda {

std::span<const Kernel> generic_mla_attention_backward_kernels();

}  // namespace attile::cuda
