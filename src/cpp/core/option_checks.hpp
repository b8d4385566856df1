// Checks of the options that several public functions share: the value that a problem takes, or the error.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/mask.hpp"
#include "core/tensor_checks.hpp"

namespace attile {

// The host reads the entries only where they are in its memory.
inline IndexView index_view(const char* function, const char* name, const attile_tensor& t) {
  check_rank(function, name, t, {1});
  const DType id = dtype_of(t.dtype);
  if (id == DType::none || !is_index(id)) type_error(function, std::string(name) + " must hold indices", "int32 or int64", name_of(t.dtype));
  return {static_cast<const char*>(t.data), id, t.shape[0], t.strides[0], t.device_type != 1};
}

// [Hq,n], [1,n] or [n] as [1, 1, Hq, n].
inline View sinks_view(const char* function, const attile_tensor& t, int64_t heads_q) {
  const char* name = "softmax_aux";
  floating_dtype(function, name, t, "float64, float32, float16 or bfloat16", false);
  check_rank(function, name, t, {1, 2});
  check_contiguous(function, name, t, true);
  const std::string h = std::to_string(heads_q);
  if (t.rank == 1 && t.shape[0] == heads_q && heads_q > 1)
    value_error(function, "softmax_aux.shape is ambiguous", "[" + h + ", 1] (one sink a head) or [1, " + h + "] (one list for all heads)", t);
  View v = view_of(t);
  if (v.shape[2] == 1) v.stride[2] = 0;
  else if (v.shape[2] != heads_q)
    value_error(function, "softmax_aux.shape[0] must be 1 or the number of query heads", "1 or " + h, v.shape[2]);
  v.shape[2] = heads_q;
  return v;
}

inline double checked_scale(const char* function, double scale) {
  if (!std::isfinite(scale)) value_error(function, "softmax_scale must be finite", "a finite number", scale);
  return scale;
}

inline double checked_cap(const char* function, double cap) {
  if (!std::isfinite(cap) || cap <= 0) value_error(function, "logits_soft_cap must be positive and finite", "a positive number", cap);
  return cap;
}

// One side, "left" or "right", of a sliding window; -1 is unlimited.
inline int64_t window_side(const char* function, const char* which, int64_t w) {
  if (w < -1) value_error(function, std::string("sliding_window's ") + which + " must not be negative", "0 or more, or -1 or None (unlimited)", w);
  return w == -1 ? Mask::kUnlimited : std::min(w, Mask::kUnlimited);
}

}  // namespace attile
