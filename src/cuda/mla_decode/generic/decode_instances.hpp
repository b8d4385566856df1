// The compiled kernels: each file decode_<type>.cu has those of an element type.
#pragma once

#include <cstdint>
#include <span>

#include "core/dtype.hpp"
#include "cuda/mla_decode/generic/decode_params.hpp"

namespace attile::cuda::latent {

struct DecodeInstance {
  int tile_m, tile_n;
  int blocks;  // of a multiprocessor, as far as registers go
  Layout (*layout)(int latent, int rope, bool head_rope, int stages);
  void (*launch)(const DecodeParams&, int64_t blocks, void* stream);
  void (*join)(DecodeParams, int64_t blocks, void* stream);  // blocks: without splits
};

// By rows, fewest first.
std::span<const DecodeInstance> decode_bf16();
std::span<const DecodeInstance> decode_f16();
std::span<const DecodeInstance> decode_f32();

}  // namespace attile::cuda::latent
