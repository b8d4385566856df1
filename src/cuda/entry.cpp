// The one symbol of libattile_cuda (see entry.hpp), and what it says of the driver and the GPUs.
#include "cuda/entry.hpp"

#include <cstdio>
#include <cstring>

#include "core/check.hpp"
#include "cuda/combine.hpp"
#include "cuda/device.hpp"
#include "cuda/kernels.hpp"
#include "cuda/mla_decode/append.hpp"

namespace attile::cuda {
namespace {

const CudaHost* host = nullptr;

// The oldest driver that runs the CUDA runtime of this major version.
const char* needed_driver() { return CUDART_VERSION >= 13000 ? "R580 (580.65) or newer" : "R525 (525.60) or newer"; }

std::string version_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

int count_devices(std::string& why) {
  const std::string runtime = "the CUDA " + version_text(CUDART_VERSION) + " runtime of libattile_cuda";
  const std::string needs = runtime + " needs NVIDIA driver " + needed_driver();
  int driver = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    (void)cudaGetLastError();
    why = "no NVIDIA driver was found (libcuda.so.1); " + needs;
    return 0;
  }
  const cudaError_t error = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
  if (error == cudaErrorInsufficientDriver) {
    why = "the NVIDIA driver is too old (it speaks CUDA " + version_text(driver) + "); " + needs;
    return 0;
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    why = "the NVIDIA driver sees no GPU; " + needs;
    return 0;
  }
  if (error != cudaSuccess) {
    why = std::string("the NVIDIA driver does not work: ") + cudaGetErrorString(error) + "; " + needs;
    return 0;
  }
  return count;
}

void describe_device(int id, CudaDevice& d) {
  const auto attribute = [id](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, id), "asking for a device's attributes");
    return value;
  };
  // Properties are of a struct that changes with CUDA's version, but of the one compiled in here.
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, id), "asking for a device's properties");
  d = {};
  std::snprintf(d.name, sizeof d.name, "%s", properties.name);
  d.major = attribute(cudaDevAttrComputeCapabilityMajor);
  d.minor = attribute(cudaDevAttrComputeCapabilityMinor);
  d.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  d.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  d.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  d.l2_bytes = attribute(cudaDevAttrL2CacheSize);
}

void with_device(int id, void (*body)(void*), void* context) {
  struct Restore {
    int before = -1;
    ~Restore() {
      if (before >= 0) (void)cudaSetDevice(before);
    }
  } restore;
  int current = 0;
  check(cudaGetDevice(&current), "asking for the current device");
  if (current != id) {
    check(cudaSetDevice(id), "changing the current device");
    restore.before = current;
  }
  body(context);
}

bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "asking whether the stream is being captured");
  return status != cudaStreamCaptureStatusNone;
}

// From pageable memory the runtime copies to a buffer of its own before it returns.
void copy_to_device(void* to, const void* from, size_t bytes, void* stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)), "copying index arrays to the GPU");
}

void synchronize(void* stream) { check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "waiting for the stream"); }

}  // namespace

const CudaDevice& device(int id) { return host->device(id); }

bool some_device_has(int major, int minor) {
  for (int id = 0; id < host->device_count(); ++id) {
    const CudaDevice& d = device(id);
    if (d.major > major || (d.major == major && d.minor >= minor)) return true;
  }
  return false;
}

std::string lacks(int device_id, int major, int minor) {
  const CudaDevice& d = device(device_id);
  if (d.major > major || (d.major == major && d.minor >= minor)) return "";
  return "needs compute capability " + std::to_string(major) + "." + std::to_string(minor) + " or newer: cuda:" +
         std::to_string(device_id) + " (" + d.name + ") has " + std::to_string(d.major) + "." + std::to_string(d.minor);
}

void check(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  throw Error(error == cudaErrorMemoryAllocation ? ATTILE_OUT_OF_MEMORY : ATTILE_RUNTIME_ERROR,
              std::string(doing) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
}

}  // namespace attile::cuda

extern "C" __attribute__((visibility("default"))) const attile::CudaLibrary* attile_cuda_entry(uint64_t interface,
                                                                                               const attile::CudaHost* from) {
  using namespace attile;
  if (interface != kCudaInterface) return nullptr;
  cuda::host = from;
  static const CudaLibrary library{.runtime_version = CUDART_VERSION,
                                   .architectures = ATTILE_CUDA_ARCHITECTURES,
                                   .count_devices = cuda::count_devices,
                                   .describe_device = cuda::describe_device,
                                   .with_device = cuda::with_device,
                                   .is_capturing = cuda::is_capturing,
                                   .copy_to_device = cuda::copy_to_device,
                                   .synchronize = cuda::synchronize,
                                   .forward_kernels = cuda::forward_kernels(),
                                   .merge_states = cuda::merge_states,
                                   .backward_kernels = cuda::backward_kernels(),
                                   .mla_attention_kernels = cuda::mla_attention_kernels(),
                                   .mla_attention_backward_kernels = cuda::mla_attention_backward_kernels(),
                                   .mla_decode_kernels = cuda::mla_decode_kernels(),
                                   .append_paged = cuda::append_paged};
  return &library;
}
