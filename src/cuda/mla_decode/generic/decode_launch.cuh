// Included by the files that compile kernels, one for each element type.
#pragma once

#include "cuda/device.hpp"
#include "cuda/mla_decode/generic/decode_instances.hpp"
#include "cuda/mla_decode/generic/decode_join.cuh"

namespace attile::cuda::latent {

template <class Traits>
void launch_decode(const DecodeParams& p, int64_t blocks, void* stream) {
  static_assert(sizeof(DecodeParams) <= 4096);
  if (p.layout.bytes > 48 << 10)
    check(cudaFuncSetAttribute(mla_decode_kernel<Traits>, cudaFuncAttributeMaxDynamicSharedMemorySize, p.layout.bytes),
          "preparing mla_decode_generic");
  mla_decode_kernel<Traits><<<static_cast<unsigned>(blocks), Traits::kThreads, p.layout.bytes, static_cast<cudaStream_t>(stream)>>>(p);
  check_launch("launching mla_decode_generic");
}

template <class Traits>
void launch_join(DecodeParams p, int64_t blocks, void* stream) {
  using Element = typename Traits::Element;
  const int splits = p.splits;
  p.splits = 1;
  const auto grid = static_cast<unsigned>(blocks * (Traits::kTileM / kJoinRows));
  mla_decode_join_kernel<Element, Traits::kTileM><<<grid, kJoinThreads, 0, static_cast<cudaStream_t>(stream)>>>(p, splits);
  check_launch("launching mla_decode_join");
}

template <class Traits>
constexpr DecodeInstance instance_of() {
  return {Traits::kTileM, Traits::kTileN, Traits::kBlocks, Traits::layout, launch_decode<Traits>, launch_join<Traits>};
}

}  // namespace attile::cuda::latent
