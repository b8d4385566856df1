// Checks of single arrays that every validator needs, and their translation to views.
#pragma once

#include <initializer_list>
#include <string>

#include "core/check.hpp"
#include "core/view.hpp"

namespace attile {

// "query.shape[3]"
inline std::string axis(const char* name, int32_t d) { return std::string(name) + ".shape[" + std::to_string(d) + "]"; }

// The first array decides where a call runs: on the CPU, or on its CUDA device.
inline void check_place(const char* function, const char* name, const attile_tensor& t, int32_t platform = ATTILE_PLATFORM_AUTO) {
  if (platform == ATTILE_PLATFORM_CPU && t.device_type != 1) value_error(function, "platform must hold the arrays", "cpu arrays", "arrays on another device");
  if (platform == ATTILE_PLATFORM_CUDA && t.device_type != 2) value_error(function, "platform must hold the arrays", "cuda arrays", "arrays on another device");
  if (t.device_type != 1 && t.device_type != 2)
    value_error(function, std::string(name) + " is on an unsupported device", "cpu or cuda", "DLPack device " + std::to_string(t.device_type));
}

// Beside CUDA data, an index array may lie on the host.
inline void check_device(const char* function, const char* name, const attile_tensor& t, const char* first_name, const attile_tensor& first,
                         bool index = false) {
  if (t.device_type == first.device_type && t.device_id == first.device_id) return;
  if (index && t.device_type == 1 && first.device_type == 2) return;
  auto device = [](const attile_tensor& x) {
    return std::string(x.device_type == 1 ? "cpu" : x.device_type == 2 ? "cuda" : "DLPack device " + std::to_string(x.device_type)) + ":" +
           std::to_string(x.device_id);
  };
  value_error(function, std::string(name) + " must be on the device of " + first_name, device(first), device(t));
}

inline void check_rank(const char* function, const char* name, const attile_tensor& t, std::initializer_list<int32_t> ranks) {
  std::string expected;
  for (int32_t r : ranks) {
    if (t.rank == r) return;
    expected += (expected.empty() ? "" : " or ") + std::to_string(r);
  }
  value_error(function, std::string(name) + " must have rank " + expected, expected,
              std::to_string(t.rank) + " (shape " + text_of(t) + ")");
}

inline void check_size(const char* function, const char* name, const attile_tensor& t, int32_t d, int64_t expected, const std::string& of) {
  if (t.shape[d] != expected) value_error(function, axis(name, d) + " must equal " + of, expected, t.shape[d]);
}

inline void check_contiguous(const char* function, const char* name, const attile_tensor& t, bool zero_stride_allowed = false) {
  const int32_t d = t.rank - 1;
  if (d < 0 || t.shape[d] <= 1 || t.strides[d] == 1 || (zero_stride_allowed && t.strides[d] == 0)) return;
  for (int32_t i = 0; i < t.rank; ++i)
    if (t.shape[i] == 0) return;
  value_error(function, std::string(name) + " must be contiguous in its last dimension", "stride 1",
              "stride " + std::to_string(t.strides[d]) + " (elements)");
}

inline DType floating_dtype(const char* function, const char* name, const attile_tensor& t, const char* expected, bool float8) {
  const DType id = dtype_of(t.dtype);
  if (id == DType::none || !is_floating(id) || (id == DType::f8e4m3 && !float8))
    type_error(function, std::string(name) + " has an unsupported dtype", expected, name_of(t.dtype));
  return id;
}

// Right-aligned in four dimensions; absent leading dimensions have extent 1.
inline View view_of(const attile_tensor& t) {
  View v;
  v.data = static_cast<char*>(t.data);
  v.dtype = dtype_of(t.dtype);
  for (int32_t i = 0; i < 4; ++i) {
    const int32_t d = i - (4 - t.rank);
    v.shape[i] = d < 0 ? 1 : t.shape[d];
    v.stride[i] = d < 0 ? 0 : t.strides[d];
  }
  return v;
}

// [.., T, d], or with heads [.., T, H, d], as [B, T, H, d]; stride 0 over heads that share one.
inline View tokens_view(const attile_tensor& t, bool by_head) {
  View v = view_of(t);
  if (by_head) return v;
  v.shape[0] = v.shape[1];
  v.stride[0] = v.stride[1];
  v.shape[1] = v.shape[2];
  v.stride[1] = v.stride[2];
  v.shape[2] = 1;
  v.stride[2] = 0;
  return v;
}

// An lse, [H, T] or [B, H, T], as [B, H, T, 1].
inline View lse_view_of(const attile_tensor& t) {
  View v = view_of(t);
  for (int i = 0; i < 3; ++i) v.shape[i] = v.shape[i + 1], v.stride[i] = v.stride[i + 1];
  v.shape[3] = 1;
  v.stride[3] = 0;
  return v;
}

}  // namespace attile
