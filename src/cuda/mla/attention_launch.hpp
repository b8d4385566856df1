// The rows of mla_attention: mla_generic_sm80 takes every option on every GPU since sm_80. Both strategies are plain attention with products
// around it, in pieces (pieces.hpp) that are queued one after another:
//
//   rebuild   project    K = latent w_kc, V = latent w_vc of the piece's heads, rounded once, into the workspace
//             copy       rope keys behind K; queries in two arrays side by side
//             attention  the first forward kernel that takes the piece
//   absorb    project    q' = q w_kc^T, rounded
//             attention  among latents: the first kernel of mla_decode that takes the piece; for options that those have not, the first forward
//                        kernel, of one key head, when latents and rope keys were copied side by side, and the queries' rope parts behind q'
//             project    out = o w_vc
//
// Everything is planned from shapes; lengths stay on the device.
#pragma once

#include <span>

#include "core/kernel_table.hpp"

namespace attile::cuda {

std::span<const Kernel> generic_mla_attention_kernels();

}  // namespace attile::cuda
