// For the files of libattile_cuda: the GPUs, and CUDA's errors as ours.
#pragma once

#include <cuda_runtime_api.h>

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

// After a launch: check(cudaGetLastError(), "launching <kernel>").
inline void check_launch(const char* doing) { check(cudaGetLastError(), doing); }

}  // namespace attile::cuda
