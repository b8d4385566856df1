#include "cuda/forward/sm90/tensor_maps.hpp"

#include <algorithm>
#include <climits>
#include <numeric>

#include "core/check.hpp"
#include "cuda/device.hpp"

namespace attile::cuda::sm90 {
namespace {

constexpr int64_t kFarRows = 1 << 30;  // kFar

// Of the driver, which is found at run time: the library does not link it.
auto encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result), "looking for cuTensorMapEncodeTiled");
  if (!found) throw Error(ATTILE_RUNTIME_ERROR, "the NVIDIA driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}

CUtensorMapDataType type_of(DType t) {
  if (t == DType::f8e4m3) return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  return t == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

// bytes: the steps of all dimensions but the first. A box is `columns` of the first, `heads` of the second where there are five, and `rows` of the next.
template <int kRank>
CUtensorMap encode(const View& v, const cuuint64_t (&dims)[kRank], const cuuint64_t (&bytes)[kRank - 1], cuuint32_t columns, int heads, int rows,
                   CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B) {
  cuuint32_t box[kRank], steps[kRank];
  std::fill_n(box, kRank, 1), std::fill_n(steps, kRank, 1);
  box[0] = columns, box[1] = static_cast<cuuint32_t>(heads), box[kRank - 3] = static_cast<cuuint32_t>(rows);
  CUtensorMap map;
  const CUresult result = encoder()(&map, type_of(v.dtype), kRank, v.data, dims, bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                    promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) throw Error(ATTILE_RUNTIME_ERROR, "cuTensorMapEncodeTiled failed with " + std::to_string(result));
  return map;
}

// A dimension of one element has any step.
cuuint64_t step_of(const View& v, int d) {
  return v.shape[d] > 1 ? static_cast<cuuint64_t>(v.stride[d]) * size_of(v.dtype) : 16;
}
cuuint64_t extent(const View& v, int d) { return static_cast<cuuint64_t>(v.shape[d]); }
constexpr CUtensorMapSwizzle kSwizzle = CU_TENSOR_MAP_SWIZZLE_128B;
cuuint32_t columns_of(const View& v) { return static_cast<cuuint32_t>(128 / size_of(v.dtype)); }

}  // namespace

View every_nth_head(View v, int n) {
  v.shape[2] /= n, v.stride[2] *= n;
  return v;
}

std::string tma_objection(const char* name, const View& v) {
  if (reinterpret_cast<uintptr_t>(v.data) % 16) return std::string(name) + " does not begin on 16 bytes";
  const char* axes[3] = {"batch", "token", "head"};
  for (int d = 0; d < 3; ++d) {
    const int64_t bytes = v.stride[d] * static_cast<int64_t>(size_of(v.dtype));
    if (v.shape[d] > 1 && (bytes % 16 || bytes <= 0 || bytes >= int64_t{1} << 35))
      return std::string(name) + "'s " + axes[d] + " stride is not a positive multiple of 16 bytes below 2^35: " + std::to_string(bytes);
  }
  return "";
}

CUtensorMap rows_map(const View& v, int box_rows, CUtensorMapL2promotion promotion) {
  return encode<4>(v, {extent(v, 3), extent(v, 1), extent(v, 2), extent(v, 0)}, {step_of(v, 1), step_of(v, 2), step_of(v, 0)}, columns_of(v), 1, box_rows,
                   kSwizzle, promotion);
}

CUtensorMap packed_rows_map(const View& v, int heads, int box_positions) {
  const View sets = every_nth_head(v, heads);
  return encode<5>(v, {extent(v, 3), static_cast<cuuint64_t>(heads), extent(v, 1), extent(sets, 2), extent(v, 0)},
                   {step_of(v, 2), step_of(v, 1), step_of(sets, 2), step_of(v, 0)}, columns_of(v), heads, box_positions, kSwizzle);
}

EndingMap ending_steps(const View& v) {
  int64_t bytes[3], step = 0;  // batch, token, head
  for (int d = 0; d < 3; ++d) {
    bytes[d] = d == 1 || v.shape[d] > 1 ? static_cast<int64_t>(step_of(v, d)) : 0;
    step = std::gcd(step, bytes[d]);
  }
  int64_t most = v.shape[1] * (bytes[1] / step);
  for (int d : {0, 2}) most += (v.shape[d] - 1) * (bytes[d] / step);
  if (most >= INT_MAX) return {0, 0, 0, 0};
  return {bytes[1] / step, bytes[2] / step, bytes[0] / step, step};
}

CUtensorMap ending_rows_map(const View& v, const EndingMap& steps, int box_rows) {
  const cuuint64_t row = step_of(v, 1);
  return encode<4>(v, {extent(v, 3), kFarRows, kFarRows + 1, INT_MAX}, {row, (cuuint64_t{1} << 35) - row, static_cast<cuuint64_t>(steps.step)},
                   columns_of(v), 1, box_rows, kSwizzle);
}

CUtensorMap packed_ending_rows_map(const View& v, int heads, const EndingMap& steps, int box_positions) {
  const cuuint64_t row = step_of(v, 1);
  return encode<5>(v, {extent(v, 3), static_cast<cuuint64_t>(heads), kFarRows, kFarRows + 1, INT_MAX},
                   {step_of(v, 2), row, (cuuint64_t{1} << 35) - row, static_cast<cuuint64_t>(steps.step)}, columns_of(v), heads, box_positions, kSwizzle);
}

CUtensorMap bias_map(const View& v, int columns, int box_rows) {
  const auto shared = [&](int d) { return v.stride[d] == 0; };
  return encode<4>(v, {extent(v, 3), extent(v, 2), shared(1) ? 1 : extent(v, 1), shared(0) ? 1 : extent(v, 0)},
                   {static_cast<cuuint64_t>(v.stride[2]) * 2, shared(1) ? 16 : static_cast<cuuint64_t>(v.stride[1]) * 2,
                    shared(0) ? 16 : static_cast<cuuint64_t>(v.stride[0]) * 2},
                   static_cast<cuuint32_t>(columns), 1, box_rows, columns == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B);
}

}  // namespace attile::cuda::sm90
