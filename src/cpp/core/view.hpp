// Strided views. Strides are in elements and may be zero (broadcast) or negative; addresses need no alignment at all.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/dtype.hpp"

namespace attile {

// Four dimensions; what is absent has data == nullptr and dtype none.
struct View {
  char* data = nullptr;
  DType dtype = DType::none;
  int64_t shape[4] = {0, 0, 0, 0};
  int64_t stride[4] = {0, 0, 0, 0};

  explicit operator bool() const { return dtype != DType::none; }
  int64_t offset(int64_t a, int64_t b, int64_t c, int64_t d = 0) const {
    return a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3];
  }
  char* at(int64_t a, int64_t b, int64_t c, int64_t d = 0) const {
    return data + offset(a, b, c, d) * static_cast<int64_t>(size_of(dtype));
  }
};

// cu_seqlens, lengths: int32 or int64, in host memory or, beside CUDA data, in that of the device.
struct IndexView {
  const char* data = nullptr;
  DType dtype = DType::none;
  int64_t size = 0;
  int64_t stride = 1;
  bool on_device = false;  // then the host knows shapes only, and [] is not for it

  explicit operator bool() const { return dtype != DType::none; }
  int64_t operator[](int64_t i) const {
    if (dtype == DType::i64) {
      int64_t v;
      std::memcpy(&v, data + i * stride * 8, 8);
      return v;
    }
    int32_t v;
    std::memcpy(&v, data + i * stride * 4, 4);
    return v;
  }
};

// The bytes that a tensor may touch: [begin, end).
struct ByteRange {
  const char* begin;
  const char* end;
  bool overlaps(const ByteRange& other) const { return begin < other.end && other.begin < end; }
};

inline ByteRange byte_range(const attile_tensor& t) {
  int64_t low = 0, high = 0;
  for (int32_t d = 0; d < t.rank; ++d) {
    if (t.shape[d] == 0) return {nullptr, nullptr};
    const int64_t reach = (t.shape[d] - 1) * t.strides[d];
    low += std::min<int64_t>(reach, 0);
    high += std::max<int64_t>(reach, 0);
  }
  const int64_t size = t.dtype.bits / 8;
  const char* base = static_cast<const char*>(t.data);
  return {base + low * size, base + (high + 1) * size};
}

}  // namespace attile
