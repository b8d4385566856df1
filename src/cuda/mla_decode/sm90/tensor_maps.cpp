#include <string>

#include "core/check.hpp"
#include "cuda/device.hpp"
#include "cuda/mla_decode/sm90/instances.hpp"

namespace attile::cuda::mla_sm90 {
namespace {

// Of the driver, which is found at run time: the library does not link it.
decltype(&cuTensorMapEncodeTiled) find_encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
        "looking for cuTensorMapEncodeTiled");
  if (!found) throw Error(ATTILE_RUNTIME_ERROR, "the NVIDIA driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}

}  // namespace

CUtensorMap box_map(const Matrix& m, int box_rows, bool half) {
  static const auto encode = find_encoder();
  const cuuint64_t dims[3] = {static_cast<cuuint64_t>(m.columns), static_cast<cuuint64_t>(m.rows), static_cast<cuuint64_t>(m.outer)};
  const cuuint64_t bytes[2] = {static_cast<cuuint64_t>(m.stride) * 2, static_cast<cuuint64_t>(m.outer_stride) * 2};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(box_rows), 1}, steps[3] = {1, 1, 1};
  // Whole lines where rows begin on lines (requests of blocks that read the same keys then merge better than with 256 bytes); else only
  // what is asked for.
  const auto promotion = bytes[0] % 128 == 0 ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_NONE;
  CUtensorMap map;
  const CUresult result =
      encode(&map, half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(m.base), dims, bytes,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) throw Error(ATTILE_RUNTIME_ERROR, "cuTensorMapEncodeTiled failed with " + std::to_string(result));
  return map;
}

}  // namespace attile::cuda::mla_sm90
