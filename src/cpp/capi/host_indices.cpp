// Host index arrays to the device (see host_indices.hpp).
#include "capi/host_indices.hpp"

#include <cstring>

#include "capi/op.hpp"
#include "core/check.hpp"

namespace attile {
namespace {

constexpr size_t kAlignment = 16;

size_t bytes_of(const attile_tensor& t) {
  size_t bytes = t.dtype.bits / 8;
  for (int32_t d = 0; d < t.rank; ++d) bytes *= static_cast<size_t>(t.shape[d]);
  return bytes;
}

// The elements in C order, without gaps. Index arrays have one or two dimensions.
void pack(const attile_tensor& t, char* to) {
  const size_t size = t.dtype.bits / 8;
  const int64_t rows = t.rank == 2 ? t.shape[0] : 1, row_stride = t.rank == 2 ? t.strides[0] : 0;
  const int64_t columns = t.shape[t.rank - 1], stride = t.strides[t.rank - 1];
  const char* from = static_cast<const char*>(t.data);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j, to += size)
      std::memcpy(to, from + (i * row_stride + j * stride) * static_cast<int64_t>(size), size);
}

}  // namespace

void HostIndices::add(const char* name, const attile_tensor* array, IndexView* index, View* view) {
  if (!array || array->device_type != 1) return;
  entries_.push_back({name, *array, index, view, bytes_});
  bytes_ += (bytes_of(*array) + kAlignment - 1) / kAlignment * kAlignment;
}
void HostIndices::add(const char* name, const attile_tensor* array, IndexView& view) { add(name, array, &view, nullptr); }
void HostIndices::add(const char* name, const attile_tensor* array, View& view) { add(name, array, nullptr, &view); }

void HostIndices::copy(const CudaLibrary& cuda, const char* function, const Execution& execution, char* workspace) {
  if (cuda.is_capturing(execution.stream))
    value_error(function, std::string(entries_[0].name) + " must be on the device of the data while a graph is captured",
                "cuda:" + std::to_string(execution.device), "an array in host memory");
  char* staging = static_cast<char*>(thread_scratch(bytes_));
  for (const Entry& e : entries_) pack(e.array, staging + e.offset);
  cuda.copy_to_device(workspace, staging, bytes_, execution.stream);
  for (const Entry& e : entries_) {
    char* data = workspace + e.offset;
    const int64_t columns = e.array.shape[e.array.rank - 1];
    if (e.index) {
      e.index->data = data;
      e.index->stride = 1;
      e.index->on_device = true;
    } else {
      e.view->data = data;
      e.view->stride[3] = 1;
      e.view->stride[2] = e.array.rank == 2 ? columns : 0;
    }
  }
}

}  // namespace attile
