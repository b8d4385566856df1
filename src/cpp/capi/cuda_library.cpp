// Opening libattile_cuda (see cuda_library.hpp).
#include "capi/cuda_library.hpp"

#include <dlfcn.h>

#include <atomic>
#include <deque>
#include <mutex>

#include "core/check.hpp"

namespace attile {
namespace {

std::mutex mutex;
std::atomic<const CudaLibrary*> opened{nullptr};
std::deque<CudaDevice> devices;  // grows once, under the mutex; elements stay where they are
std::atomic<int> device_count{0};

int host_device_count() { return device_count.load(std::memory_order_acquire); }

// The folder of the file that this function lies in, with its last slash.
std::string own_folder() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&own_folder), &info) || !info.dli_fname) return "";
  const std::string path = info.dli_fname;
  return path.substr(0, path.rfind('/') + 1);
}

const CudaLibrary* open(std::string& why) {
  const std::string path = own_folder() + "libattile_cuda.so";
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    why = "this build of attile has no CUDA kernels (";
    const char* reason = dlerror();
    why += (reason ? reason : path) + std::string(")");
    return nullptr;
  }
  static const CudaHost host{host_device_count, cuda_device};
  const auto entry = reinterpret_cast<CudaEntry>(dlsym(handle, kCudaEntryName));
  const CudaLibrary* library = entry ? entry(kCudaInterface, &host) : nullptr;
  if (library) return library;
  dlclose(handle);
  why = path + " is of another build of attile";
  return nullptr;
}

}  // namespace

const CudaLibrary* find_cuda_library(std::string& why) {
  if (const CudaLibrary* library = opened.load(std::memory_order_acquire)) return library;
  const std::lock_guard lock(mutex);
  if (!opened.load(std::memory_order_relaxed)) opened.store(open(why), std::memory_order_release);
  return opened.load(std::memory_order_relaxed);
}

int cuda_device_count(std::string& why) {
  if (const int count = host_device_count()) return count;
  const CudaLibrary* library = find_cuda_library(why);
  if (!library) return 0;
  const std::lock_guard lock(mutex);
  if (devices.empty()) {
    const int count = library->count_devices(why);
    std::deque<CudaDevice> found(static_cast<size_t>(count));
    for (int id = 0; id < count; ++id) library->describe_device(id, found[static_cast<size_t>(id)]);
    devices = std::move(found);
    device_count.store(count, std::memory_order_release);
  }
  return host_device_count();
}

const CudaDevice& cuda_device(int id) { return devices.at(static_cast<size_t>(id)); }

const CudaLibrary& cuda_library(const char* function, int device_id) {
  const auto refuse = [&](attile_status status, const std::string& why) {
    throw Error(status, std::string(function) + ": the arrays are on cuda:" + std::to_string(device_id) + ", but " + why);
  };
  std::string why;
  const CudaLibrary* library = find_cuda_library(why);
  if (!library) refuse(ATTILE_NOT_IMPLEMENTED, why);
  const int count = cuda_device_count(why);
  if (count == 0) refuse(ATTILE_RUNTIME_ERROR, why);
  if (device_id < 0 || device_id >= count) refuse(ATTILE_RUNTIME_ERROR, "the driver knows " + std::to_string(count) + " GPUs");
  return *library;
}

void rethrow_from_cuda(const char* function, int device_id) {
  const std::string prefix = std::string(function) + ": ";
  try {
    throw;
  } catch (const Error& e) {
    const std::string text = e.what();
    if (text.rfind(prefix, 0) == 0) throw;
    throw Error(e.status, prefix + "on cuda:" + std::to_string(device_id) + " (" + cuda_device(device_id).name + "), " + text);
  }
}

}  // namespace attile
