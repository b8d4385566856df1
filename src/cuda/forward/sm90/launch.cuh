// Included by the files that compile kernels.
#pragma once

#include <climits>

#include "cuda/device.hpp"
#include "cuda/forward/sm90/instances.cuh"
#include "cuda/forward/sm90/kernel.cuh"

namespace attile::cuda::sm90 {

template <class T>
void launch(const Params& p, int blocks, void* stream) {
  static_assert(sizeof(Params) <= 4096);
  constexpr int kBytes = sizeof(SharedStorage<T>);
  check(cudaFuncSetAttribute(forward_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "preparing forward_sm90");
  forward_kernel<T><<<static_cast<unsigned>(blocks), T::kThreads, kBytes, static_cast<cudaStream_t>(stream)>>>(p);
  check_launch("launching forward_sm90");
}

template <class Element, int D, int Dv, Kind kKind, Length kLength = Length::kMiddle>
constexpr Instance instance_of() {
  using T = Traits<Element, D, Dv, kKind, kLength>;
  // There is an instance for long rows too.
  constexpr bool kLongToo = Element::kBytes == 2 && (kKind == Kind::kCausal ? D == 96 || D == 128 : kKind == Kind::kFull && D == 256);
  constexpr int kToKeys = kLength == Length::kShort ? kShortTo : kLength == Length::kMiddle && kLongToo ? kLongFrom - 1 : INT_MAX;
  return {kKind, kToKeys, D, Dv, T::kTileM, T::kTileN, T::kBiasColumns, T::kDynamic, sizeof(SharedStorage<T>), launch<T>};
}

}  // namespace attile::cuda::sm90
