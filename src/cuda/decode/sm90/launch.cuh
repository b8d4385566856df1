// Included by the files that compile kernels.
#pragma once

#include "cuda/decode/sm90/instances.hpp"
#include "cuda/decode/sm90/kernel.cuh"
#include "cuda/device.hpp"

namespace attile::cuda::decode_sm90 {

template <class T>
void launch(const Params& p, const Maps& maps, int blocks, void* stream) {
  constexpr int kBytes = sizeof(SharedStorage<T>);
  static_assert(kBytes <= (227 << 10) / T::kBlocks - (T::kBlocks > 1) * 1024);
  const auto kernel = decode_kernel<T>;
  static OncePerDevice prepared;  // the attribute takes 0.4 us
  prepared([&] { check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "preparing decode_sm90"); });
  // The blocks meet at a barrier: all are to be resident.
  cudaLaunchAttribute attributes[1];
  attributes[0].id = cudaLaunchAttributeCooperative;
  attributes[0].val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(T::kThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, p, maps), "launching decode_sm90");
}

template <class T>
constexpr Instance instance_of() {
  return {T::kDim, T::kRows, T::kN, T::kBlocks, launch<T>};
}

// Two blocks a multiprocessor where they fit: one computes while the other waits. Of 64 rows products are the limit: eight warps.
template <class Element>
std::span<const Instance> all_instances() {
  static constexpr Instance instances[] = {
      instance_of<Traits<Element, 64, 1, 5, 4, 2>>(),  instance_of<Traits<Element, 64, 2, 5, 4, 2>>(),
      instance_of<Traits<Element, 64, 4, 8, 8, 1>>(),  instance_of<Traits<Element, 128, 1, 4, 4, 2>>(),
      instance_of<Traits<Element, 128, 2, 4, 4, 2>>(), instance_of<Traits<Element, 128, 4, 8, 8, 1>>(),
      instance_of<Traits<Element, 256, 1, 4, 4, 1>>(), instance_of<Traits<Element, 256, 2, 4, 4, 1>>(),
      instance_of<Traits<Element, 256, 4, 4, 4, 1>>()};
  return instances;
}

}  // namespace attile::cuda::decode_sm90
