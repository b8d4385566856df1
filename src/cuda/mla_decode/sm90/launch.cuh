// Included by the files that compile kernels.
#pragma once

#include <atomic>
#include <type_traits>

#include "cuda/device.hpp"
#include "cuda/mla_decode/sm90/instances.hpp"
#include "cuda/mla_decode/sm90/kernel.cuh"

namespace attile::cuda::mla_sm90 {

// How many clusters of a kernel are resident together, asked once a device.
class MostClusters {
 public:
  template <class Kernel>
  int of(Kernel* kernel, const cudaLaunchConfig_t& config) {
    int id = 0;
    check(cudaGetDevice(&id), "asking for the current device");
    if (id >= kDevices) return 0;
    int known = known_[id].load(std::memory_order_relaxed);
    if (known == 0) {
      check(cudaOccupancyMaxActiveClusters(&known, kernel, &config), "asking for the clusters of mla_decode_sm90");
      known_[id].store(++known, std::memory_order_relaxed);
    }
    return known - 1;
  }

 private:
  static constexpr int kDevices = 64;
  std::atomic<int> known_[kDevices] = {};  // one more, for 0 says nothing
};

// By a cooperative launch: the blocks meet at a barrier, and parts of one request wait for each other, so all are to be resident. kPairs: in
// clusters of two where requests may be two parts each; whether they are of one length is not known here.
template <auto kKernel, int kThreads, class Storage, bool kPairs = false>
void start(const Params& p, const Maps& maps, void* stream) {
  static OncePerDevice prepared;  // the attribute takes 0.4 us
  prepared([&] {
    check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Storage)), "preparing mla_decode_sm90");
  });
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeCooperative;
  attributes[0].val.cooperative = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {1, 2, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(p.tiles), static_cast<unsigned>(p.parts));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = sizeof(Storage);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = 1;
  if constexpr (kPairs)
    if (p.parts_a_request == 2 && p.parts % 2 == 0) {
      static MostClusters most;
      config.numAttrs = 2;
      if (most.of(kKernel, config) >= p.tiles * p.parts / 2) {
        Params paired = p;
        paired.clusters = true;
        check(cudaLaunchKernelEx(&config, kKernel, paired, maps), "launching mla_decode_sm90");
        return;
      }
      config.numAttrs = 1;
    }
  check(cudaLaunchKernelEx(&config, kKernel, p, maps), "launching mla_decode_sm90");
}

template <class T>
void launch(const Params& p, const Arrays& a, void* stream) {
  using Storage = SharedStorage<T>;
  static_assert(sizeof(Storage) <= T::kShared);
  constexpr bool half = std::is_same_v<typename T::Element, F16>;
  const auto boxes = [](const Matrix& m) { return box_map(m, T::kBoxRows, half, T::kPromotion); };
  const Maps maps{T::kNarrow ? byte_map(a.ckv, T::kN, T::kOutN) : boxes(a.ckv), boxes(a.kpe), boxes(a.q_nope), boxes(a.q_pe)};
  start<mla_decode_kernel<T>, T::kThreads, Storage, T::kPairs>(p, maps, stream);
}

// Products are the limit of what has more query rows.
constexpr int kAnyRows = 1 << 30;

template <class T>
constexpr Instance instance_of(int most_rows = kAnyRows) {
  return {T::kLatentBoxes * 64, T::kRopeBoxes * 64, T::kHeadRope, T::kGathered, T::kNarrow, most_rows, T::kN, launch<T>};
}

}  // namespace attile::cuda::mla_sm90
