// What libattile and libattile_cuda say to each other. libattile_cuda.so exports one symbol, attile_cuda_entry, which takes what
// libattile offers (CudaHost) and returns what the library can do (CudaLibrary). It links the static CUDA runtime, neither libcuda
// nor libattile, and keeps no state but the pointer to its host: libattile opens it at the first CUDA array, and without it or
// without a driver the CPU works as ever.
//
// Both sides come from one build: they share the headers of core/, C++ types and exceptions cross between them, and the number in
// kCudaInterface refuses the library of another build. Failures are attile::Error, with the text of CUDA in it; the runtime's own
// last error is cleared before one is thrown, so that no failure is found again by a later call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "core/backward_problem.hpp"
#include "core/kernel_table.hpp"
#include "core/mla_decode_problem.hpp"
#include "core/paged_append.hpp"
#include "core/problem.hpp"

namespace attile {

struct CudaDevice {
  char name[256];
  int32_t major, minor;  // compute capability
  int32_t multiprocessors;
  int32_t shared_bytes;  // that a block may opt in to
  int64_t memory_bytes, l2_bytes;
};

// What libattile offers.
struct CudaHost {
  int (*device_count)();
  const CudaDevice& (*device)(int id);  // asked of the driver once, then remembered; 0 <= id < device_count()
};

// What libattile_cuda can do.
struct CudaLibrary {
  int32_t runtime_version;    // of the CUDA runtime inside: 13000 is 13.0
  const char* architectures;  // "sm_80 sm_90 sm_90a compute_80"

  // The number of GPUs; when it is 0, `why` says what is missing (a driver, a newer driver, a GPU).
  int (*count_devices)(std::string& why);
  void (*describe_device)(int id, CudaDevice& device);

  // Calls body(context) with this device current to the thread, and makes the one before current again.
  void (*with_device)(int device, void (*body)(void* context), void* context);
  bool (*is_capturing)(void* stream);
  // Queues the copy; the memory at `from` may be reused at once.
  void (*copy_to_device)(void* to, const void* from, size_t bytes, void* stream);
  void (*synchronize)(void* stream);

  // Fastest first. Kernel::run is called inside with_device.
  std::span<const Kernel> forward_kernels;
  // out and lse of two disjoint sets of keys, joined: see cpu/merge.hpp.
  void (*merge_states)(const View& out_a, const View& lse_a, const View& out_b, const View& lse_b, const View& out, const View& lse,
                       void* stream);

  std::span<const Kernel> backward_kernels = {};       // given a BackwardProblem
  std::span<const Kernel> mla_attention_kernels = {};  // of problems with latents
  std::span<const Kernel> mla_attention_backward_kernels = {};  // given a BackwardProblem with latents
  std::span<const Kernel> mla_decode_kernels = {};  // given an MlaDecodeProblem, as cpu_mla_decode_kernels() are
  void (*append_paged)(const PagedAppend& append, void* stream) = nullptr;
};

// Of the structs that cross: a library of another build has another number, or is of another version.
inline constexpr uint64_t kCudaVersion = ATTILE_VERSION_MAJOR * 10000 + ATTILE_VERSION_MINOR * 100 + ATTILE_VERSION_PATCH;
inline constexpr uint64_t kCudaInterface =
    (kCudaVersion << 40) + ((sizeof(AttentionProblem) + sizeof(MlaDecodeProblem) + sizeof(BackwardProblem)) << 24) + (sizeof(Kernel) << 16) +
    (sizeof(Plan) << 8) + sizeof(CudaLibrary);

using CudaEntry = const CudaLibrary* (*)(uint64_t interface, const CudaHost* host);
inline constexpr const char* kCudaEntryName = "attile_cuda_entry";

}  // namespace attile
