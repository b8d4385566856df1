// Included by the files that compile kernels.
#pragma once

#include <type_traits>

#include "cuda/device.hpp"
#include "cuda/mla_decode/sm90/instances.hpp"
#include "cuda/mla_decode/sm90/kernel.cuh"

namespace attile::cuda::mla_sm90 {

// By a cooperative launch: the blocks meet at a barrier, and parts of one request wait for each other, so all are to be resident.
template <auto kKernel, int kThreads, class Storage>
void start(const Params& p, const Maps& maps, void* stream) {
  static OncePerDevice prepared;  // the attribute takes 0.4 us
  prepared([&] {
    check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Storage)), "preparing mla_decode_sm90");
  });
  cudaLaunchAttribute attributes[1];
  attributes[0].id = cudaLaunchAttributeCooperative;
  attributes[0].val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(p.tiles), static_cast<unsigned>(p.parts));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = sizeof(Storage);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kKernel, p, maps), "launching mla_decode_sm90");
}

template <class T>
void launch(const Params& p, const Arrays& a, void* stream) {
  using Storage = SharedStorage<T>;
  static_assert(sizeof(Storage) <= T::kShared);
  constexpr bool half = std::is_same_v<typename T::Element, F16>;
  const auto boxes = [](const Matrix& m) { return box_map(m, T::kBoxRows, half, T::kPromotion); };
  const Maps maps{T::kNarrow ? byte_map(a.ckv, T::kN, T::kOutN) : boxes(a.ckv), boxes(a.kpe), boxes(a.q_nope), boxes(a.q_pe)};
  start<mla_decode_kernel<T>, T::kThreads, Storage>(p, maps, stream);
}

// Products are the limit of what has more query rows.
constexpr int kAnyRows = 1 << 30;

template <class T>
constexpr Instance instance_of(int most_rows = kAnyRows) {
  return {T::kLatentBoxes * 64, T::kRopeBoxes * 64, T::kHeadRope, T::kGathered, T::kNarrow, most_rows, T::kN, launch<T>};
}

}  // namespace attile::cuda::mla_sm90
