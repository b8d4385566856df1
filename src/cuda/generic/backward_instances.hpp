// The compiled backward kernels: each file backward_<type>_<head dim>.cu has a few.
#pragma once

#include <cstdint>
#include <span>

#include "cuda/generic/backward_params.hpp"

namespace attile::cuda::generic {

struct BackwardInstance {
  int dim;  // most head dims; 0: any
  bool general;
  int columns, other;  // of `queries` and `bias`: columns of a gradient a block; rows of the other side a tile
  int key_rows;        // of `keys`: keys a block
  int shared_bytes;    // the most of its kernels
  void (*keys)(const BackwardParams&, int64_t blocks, void* stream);
  void (*finish)(const BackwardParams&, int64_t blocks, void* stream);  // null: `keys` cannot sum dQ
  void (*queries)(const BackwardParams&, int64_t blocks, void* stream);
  void (*bias)(const BackwardParams&, int key_tiles, int64_t blocks, void* stream);  // general ones
};

// By head dims, smallest first.
std::span<const BackwardInstance> backward_bf16_64();
std::span<const BackwardInstance> backward_bf16_128();
std::span<const BackwardInstance> backward_bf16_512();
std::span<const BackwardInstance> backward_f16_64();
std::span<const BackwardInstance> backward_f16_128();
std::span<const BackwardInstance> backward_f16_512();
std::span<const BackwardInstance> backward_f32_64();
std::span<const BackwardInstance> backward_f32_512();

// lse and delta of all rows, then dsinks where they are asked for.
void run_backward_rows(DType dtype, const BackwardParams& p, int64_t rows, int64_t sinks, void* stream);

}  // namespace attile::cuda::generic
