// libattile_cuda from libattile's side: opened from libattile's own folder at the first CUDA array or at show_config(), and kept.
// The GPUs are asked for once they are there; a failure is not remembered, so that a call after it starts afresh.
#pragma once

#include <string>

#include "cuda/entry.hpp"

namespace attile {

// The library; null with the reason in `why` when it cannot be opened.
const CudaLibrary* find_cuda_library(std::string& why);

// The number of GPUs; when 0, `why` says what is missing: the library, a driver, a GPU.
int cuda_device_count(std::string& why);
const CudaDevice& cuda_device(int id);

// For a call on arrays of this device. Throws ATTILE_NOT_IMPLEMENTED without the library, ATTILE_RUNTIME_ERROR without a driver.
const CudaLibrary& cuda_library(const char* function, int device_id);

// The Error in flight, with the call's name and the device in front.
[[noreturn]] void rethrow_from_cuda(const char* function, int device_id);

// Calls body() with the device current.
template <class Body>
void on_cuda_device(const CudaLibrary& library, const char* function, int device_id, Body body) {
  try {
    library.with_device(device_id, [](void* context) { (*static_cast<Body*>(context))(); }, &body);
  } catch (...) {
    rethrow_from_cuda(function, device_id);
  }
}

}  // namespace attile
