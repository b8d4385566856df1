#include "cuda/generic/forward_join.cuh"

#include "cuda/device.hpp"
#include "cuda/generic/forward_instances.hpp"

namespace attile::cuda::generic {
namespace {

template <class Element>
void launch(const ForwardParams& p, int tile_m, int splits, int64_t blocks, cudaStream_t stream) {
  if (tile_m == 128) {
    join_kernel<Element, 128><<<static_cast<unsigned>(blocks * 128 / kJoinRows), kJoinThreads, 0, stream>>>(p, splits);
  } else {
    join_kernel<Element, 64><<<static_cast<unsigned>(blocks * 64 / kJoinRows), kJoinThreads, 0, stream>>>(p, splits);
  }
}

}  // namespace

void join_splits(DType dtype, ForwardParams p, const ForwardInstance& instance, int64_t blocks, void* stream) {
  const int splits = p.splits;
  p.splits = p.column_parts = 1;
  const cudaStream_t to = static_cast<cudaStream_t>(stream);
  if (dtype == DType::bf16) {
    launch<Bf16>(p, instance.tile_m, splits, blocks, to);
  } else if (dtype == DType::f16) {
    launch<F16>(p, instance.tile_m, splits, blocks, to);
  } else {
    launch<F32>(p, instance.tile_m, splits, blocks, to);
  }
  check_launch("launching join_splits");
}

}  // namespace attile::cuda::generic
