// What the kernels of this folder are told.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/generic/forward_params.hpp"

namespace attile::cuda::decode_sm90 {

constexpr int kMaxBatch = 4096, kLeastBox = 8;  // a box of TMA

struct Params {
  generic::ForwardParams f;  // the problem; strides in bytes
  int32_t rows;              // query tokens x heads of a group
  int32_t pages;             // of the caches: sequences where they are dense
  int32_t box_keys;          // keys that lie together: a power of two that divides the page size
  bool reshape;              // scores are scaled and capped before the softmax
  bool evict_first;          // what is read makes room in L2 for what is read next, and for nothing else

  constexpr bool by_lanes() const { return box_keys < kLeastBox; }  // copied 16 bytes a lane, not by TMA

  static constexpr int64_t kMostKeys = int64_t{1} << 30;

  // Partial results of parts of a unit, see plan.cuh: [slot][rows][dim], and [slot][rows][2], maximum (base 2) and sum.
  float* out_parts;
  float* state_parts;
};

struct Maps {
  CUtensorMap k, v;
};

}  // namespace attile::cuda::decode_sm90
