// What the generic mla_decode kernels are told: the problem in the terms of generic/forward_params.hpp, whose q and k are the latent
// parts, and what is special to latents. Strides and addresses are in bytes.
#pragma once

#include "cuda/generic/forward_params.hpp"

namespace attile::cuda::latent {

// A block's shared memory: rows of queries, rows of keys in a ring of `stages` tiles, scores, weights, and what is known of the rows.
// A row is its latent part and then its rope part, each with zeros up to a multiple of 128 bytes, and 16 bytes more, so that neighbouring
// rows lie in different banks.
struct Layout {
  int32_t latent_bytes, rope_bytes;  // of a row; rope_bytes 0 in keys when each head has its own
  int32_t q_stride, k_stride, tile;  // tile: bytes of a tile of keys
  int32_t scores, weights, rows, places, ring, stages, bytes;
};

struct DecodeParams : generic::ForwardParams {
  generic::Tensor q_pe, kpe;
  int32_t rope;  // elements, 0: none
  bool head_rope;
  // Where pages are one list, those of sequence b begin at page_begin[b]; the list, or a row of the table, has page_entries.
  generic::Indices page_begin;
  int64_t page_entries;
  bool latent8;  // ckv is float8_e4m3; its rows become bfloat16 on their way to shared memory
  float ckv_scale, lse_scale;
  Layout layout;
};

}  // namespace attile::cuda::latent
