// The compiled kernels: each file forward_<type>_<head dim>.cu has a few.
#pragma once

#include <cstdint>
#include <span>

#include "core/dtype.hpp"
#include "cuda/generic/forward_params.hpp"
#include "cuda/generic/forward_traits.hpp"

namespace attile::cuda::generic {

struct ForwardInstance {
  int tile_m, tile_n;
  int dim, dim_v;  // most head dims; dim 0: any, and dim_v columns of v a block
  Variant variant;
  int shared_bytes;
  void (*launch)(const ForwardParams&, int64_t blocks, void* stream);
};

// By head dims, smallest first, those that take fewer options before those that take more.
std::span<const ForwardInstance> forward_bf16_64();
std::span<const ForwardInstance> forward_bf16_128();
std::span<const ForwardInstance> forward_bf16_256();
std::span<const ForwardInstance> forward_bf16_512();
std::span<const ForwardInstance> forward_f16_64();
std::span<const ForwardInstance> forward_f16_128();
std::span<const ForwardInstance> forward_f16_256();
std::span<const ForwardInstance> forward_f16_512();
std::span<const ForwardInstance> forward_f32_64();
std::span<const ForwardInstance> forward_f32_128();
std::span<const ForwardInstance> forward_f32_256();
std::span<const ForwardInstance> forward_f32_512();

// Joins the parts that a kernel with splits left, `blocks` of them counted without splits and column parts.
void join_splits(DType dtype, ForwardParams p, const ForwardInstance& instance, int64_t blocks, void* stream);

}  // namespace attile::cuda::generic
