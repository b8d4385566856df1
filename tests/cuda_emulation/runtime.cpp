// The functions of the CUDA runtime and driver that src/cuda calls: one GPU, whose memory is the host's.
#include "cuda_runtime_api.h"

#include <cstdlib>

cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus*) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the emulation"; }
const char* cudaGetErrorName(cudaError_t) { return "cudaErrorEmulated"; }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"emulated", size_t{1} << 34};
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  const char* multiprocessors = getenv("ATTILE_EMULATED_MULTIPROCESSORS");  // few: persistent blocks have several tiles
  constexpr int kMajor = 9, kMinor = 0, kL2Bytes = 50 << 20;
  const int values[] = {kMajor, kMinor, multiprocessors ? atoi(multiprocessors) : 3, emulation::kSharedBytes, kL2Bytes};
  *value = values[which];
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** found, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
  *result = cudaDriverEntryPointSuccess;
  *found = strcmp(symbol, "cuTensorMapEncodeTiled") == 0 ? reinterpret_cast<void*>(cuTensorMapEncodeTiled) : nullptr;
  return cudaSuccess;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* dims, const cuuint64_t* steps,
                                const cuuint32_t* box, const cuuint32_t* element_steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  const uint32_t size = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 2;
  bool good = rank >= 3 && rank <= 5 && reinterpret_cast<uintptr_t>(base) % 16 == 0;
  const uint32_t line = box[0] * size;
  good &= swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? line % 16 == 0 && box[0] <= 256 : line == (swizzle == CU_TENSOR_MAP_SWIZZLE_128B ? 128u : 64u);
  good &= box[1] <= 256 && box[2] <= 256;
  *map = {static_cast<char*>(base), {1, 1, 1, 1, 1}, {size, 16, 16, 16, 16}, {box[0], box[1], box[2]}, size, swizzle};
  for (int d = 0; d < static_cast<int>(rank); ++d) {
    if (d > 0) map->steps[d] = steps[d - 1];
    good &= d < 3 || box[d] == 1;
    good &= dims[d] >= 1 && dims[d] <= uint64_t{1} << 32 && element_steps[d] == 1 && (d == 0 || (map->steps[d] % 16 == 0 && map->steps[d] < uint64_t{1} << 40));
    map->dims[d] = dims[d];
  }
  return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
