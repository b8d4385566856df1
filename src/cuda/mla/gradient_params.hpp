// The products that take gradients of keys and values to those of what they are made of, added to float32 sums. With keys and values of heads
// [first_head, first_head + heads), of which head h has the weights of head h / group:
//
//   latents   sum over h, d of dK[t, h, d] w_kc[l, h / group, d] + dV[t, h, d] w_vc[l, h / group, d]
//   weights   of w_kc [l, o, d]: sum over t and the h of o of latent[t, l] dK[t, h, d]; of w_vc the same of dV
#pragma once

#include "cuda/mla/project_params.hpp"

namespace attile::cuda::generic {

// A gradient of keys or values as it is stored, whose batches follow each other, and the weights that made them.
struct MadeGradient {
  Tensor rows;         // [batch, tokens, heads, dim]
  Tensor weight;       // [1, rank, Hk, dim]
  Tensor weight_sums;  // likewise, float32
  int32_t dim;
};

struct GradientParams {
  MadeGradient of[2];          // keys, values
  Tensor latent, latent_sums;  // [batch, tokens, 1, rank]; the sums are float32, and their batches follow each other
  int32_t batch, rows, rank, heads;
  int32_t first_head, group;
  int32_t column_tiles, first_tiles;  // weights: of both, and of keys
  Living living;
};

struct GradientInstance {
  int tile_m, tile_n;
  void (*latents)(const GradientParams&, int64_t blocks, void* stream);
  void (*weights)(const GradientParams&, int64_t blocks, void* stream);
};

GradientInstance gradient_bf16();
GradientInstance gradient_f16();
GradientInstance gradient_f32();

}  // namespace attile::cuda::generic
