#include "cpu/merge.hpp"

#include <cmath>
#include <limits>

#include "cpu/scalars.hpp"

namespace attile {
namespace {

template <class T>
void merge(const View& out_a, const View& lse_a, const View& out_b, const View& lse_b, const View& out, const View& lse) {
  constexpr T kEmpty = -std::numeric_limits<T>::infinity();
  const auto read_lse = [](const View& v, int64_t b, int64_t h, int64_t t) {
    const T x = static_cast<T>(read_floating(v.dtype, v.at(b, h, t)));
    return std::isinf(x) ? kEmpty : x;
  };
  const int64_t batch = out.shape[0], tokens = out.shape[1], heads = out.shape[2], dims = out.shape[3];
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const T a_lse = read_lse(lse_a, b, h, t), b_lse = read_lse(lse_b, b, h, t);
        const bool a_empty = a_lse == kEmpty, b_empty = b_lse == kEmpty;
        const T top = a_empty ? b_lse : b_empty ? a_lse : std::isnan(a_lse) ? a_lse : a_lse > b_lse ? a_lse : b_lse;
        const T a_part = a_empty ? 0 : std::exp(a_lse - top), b_part = b_empty ? 0 : std::exp(b_lse - top);
        const T total = a_part + b_part;
        const T a_weight = a_part / total, b_weight = b_part / total;
        for (int64_t d = 0; d < dims; ++d) {
          T x = 0;
          if (!a_empty) x += a_weight * static_cast<T>(read_floating(out_a.dtype, out_a.at(b, t, h, d)));
          if (!b_empty) x += b_weight * static_cast<T>(read_floating(out_b.dtype, out_b.at(b, t, h, d)));
          write_floating(out.dtype, out.at(b, t, h, d), x);
        }
        write_floating(lse.dtype, lse.at(b, h, t), a_empty && b_empty ? kEmpty : top + std::log(total));
      }
    }
  }
}

}  // namespace

void merge_states(const View& out_a, const View& lse_a, const View& out_b, const View& lse_b, const View& out, const View& lse) {
  if (lse.dtype == DType::f64) {
    merge<double>(out_a, lse_a, out_b, lse_b, out, lse);
  } else {
    merge<float>(out_a, lse_a, out_b, lse_b, out, lse);
  }
}

}  // namespace attile
