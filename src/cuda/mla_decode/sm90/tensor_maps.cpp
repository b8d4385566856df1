#include <memory>
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

struct Boxes {
  Matrix m;
  int bytes_of;
  CUtensorMapDataType type;
  int rows, columns;
  CUtensorMapSwizzle swizzle;
  int promotion;
  bool operator==(const Boxes&) const = default;
};

CUtensorMap encoded(const Boxes& b) {
  const auto& [m, bytes_of, type, box_rows, box_columns, swizzle, promoted] = b;
  static const auto encoder = find_encoder();
  const cuuint64_t dims[3] = {static_cast<cuuint64_t>(m.columns), static_cast<cuuint64_t>(m.rows), static_cast<cuuint64_t>(m.outer)};
  const cuuint64_t bytes[2] = {static_cast<cuuint64_t>(m.stride) * bytes_of, static_cast<cuuint64_t>(m.outer_stride) * bytes_of};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows), 1}, steps[3] = {1, 1, 1};
  // Whole lines, also where rows begin within one: what is beside a box in its lines is asked for next. Requests of blocks that read the
  // same keys merge better than with 256 bytes; where no others read them pairs of lines are faster.
  const auto promotion = promoted == 256 && bytes[0] % 256 == 0 ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B : CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
  CUtensorMap map;
  const CUresult result = encoder(&map, type, 3, const_cast<void*>(m.base), dims, bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                  promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) throw Error(ATTILE_RUNTIME_ERROR, "cuTensorMapEncodeTiled failed with " + std::to_string(result));
  return map;
}

// A call needs four, which are those of an earlier one: of the same layer, or of the same scratch.
const CUtensorMap& encode(const Boxes& b) {
  struct Known {
    Boxes boxes;
    CUtensorMap map;
  };
  constexpr size_t kMost = 256;
  static thread_local const std::unique_ptr<Known[]> known(new Known[kMost]());
  const auto address = reinterpret_cast<uintptr_t>(b.m.base);
  Known& k = known[(address >> 8 ^ address >> 16 ^ address >> 24) % kMost];
  if (!(k.boxes == b)) k.map = encoded(b), k.boxes = b;
  return k.map;
}

}  // namespace

CUtensorMap box_map(const Matrix& m, int box_rows, bool half, int promotion) {
  return encode({m, 2, half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, box_rows, 64, CU_TENSOR_MAP_SWIZZLE_128B,
                 promotion});
}

CUtensorMap byte_map(const Matrix& m, int box_rows, int columns) {
  const auto swizzle = columns == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE;
  return encode({m, 1, CU_TENSOR_MAP_DATA_TYPE_UINT8, box_rows, columns, swizzle, 128});
}

}  // namespace attile::cuda::mla_sm90
