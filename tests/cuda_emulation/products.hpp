// The products of warpgroups that have been issued and not waited for: operands in shared memory are read when they are.
#pragma once

#include <vector>

#include "cuda_runtime_api.h"

namespace emulation {

inline constexpr int kMostThreads = 512;  // of a block

struct Queued {
  Product product;
  float* d[kWarp];
  float a[16][32];
  int batch;
};

struct Products {
  std::vector<Queued> queue;
  int batch = 0;  // of the next product
};
extern Products products[kMostThreads / kWarp];  // of the block that runs, a warp each

}  // namespace emulation
