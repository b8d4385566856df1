// The compiled kernels, of bf16.cu and f16.cu.
#pragma once

#include <span>

#include "cuda/decode/sm90/params.hpp"

namespace attile::cuda::decode_sm90 {

struct Instance {
  int dim, rows;          // rows: most
  int tile_keys, blocks;  // keys a tile; blocks a multiprocessor
  void (*launch)(const Params&, const Maps&, int blocks, void* stream);
};

// Of each dim those of fewer rows first.
std::span<const Instance> bf16_instances();
std::span<const Instance> f16_instances();

}  // namespace attile::cuda::decode_sm90
