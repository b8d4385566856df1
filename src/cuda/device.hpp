// For the files of libattile_cuda: the GPUs, and CUDA's errors as ours.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <string>

#include "cuda/entry.hpp"

namespace attile::cuda {

// As libattile remembers it.
const CudaDevice& device(int id);

// Whether one of the GPUs has this compute capability or a newer one: Kernel::available.
bool some_device_has(int major, int minor);

// "" when this device (problem.device_id) has it, else the reason for Kernel::why_not.
std::string lacks(int device_id, int major, int minor);

// Throws ATTILE_RUNTIME_ERROR (ATTILE_OUT_OF_MEMORY for that) with what was being done and CUDA's text, and forgets CUDA's error.
void check(cudaError_t error, const char* doing);

// Does something once for each device, when it is first current: where a kernel is launched, what the driver is told of the kernel.
class OncePerDevice {
 public:
  template <class Body>
  void operator()(Body body) {
    int id = 0;
    check(cudaGetDevice(&id), "asking for the current device");
    const uint64_t bit = id < 64 ? uint64_t{1} << id : 0;  // further ones: each time
    if (done_.load(std::memory_order_relaxed) & bit) return;
    body();
    done_.fetch_or(bit, std::memory_order_relaxed);
  }

 private:
  std::atomic<uint64_t> done_{0};
};

// After a launch: check(cudaGetLastError(), "launching <kernel>").
inline void check_launch(const char* doing) { check(cudaGetLastError(), doing); }

}  // namespace attile::cuda
