// Columns of a product on their way out: rounded to the input dtype.
#pragma once

#include "cpu/forward/pack.hpp"
#include "cpu/mla/isa.hpp"

namespace attile::ATTILE_ISA {

// `rows` rows of `columns` of the kPanel columns in c, `stride` bytes apart.
template <class T, class Format>
inline void write_columns(const T* c, int64_t rows, int64_t columns, char* to, int64_t stride) {
  constexpr int W = kLanes<T>;
  using Storage = typename Format::Storage;
  for (int64_t j = 0; j < rows; ++j) {
    for (int64_t d = 0; d < columns; d += W) {
      const Vec<T> x = load<Vec<T>>(c + j * kPanel<T> + d);
      char* at = to + j * stride + d * static_cast<int64_t>(sizeof(Storage));
      if (d + W <= columns) {
        store_as<T, Format>(at, x);
      } else {
        Storage staged[W];
        store_as<T, Format>(staged, x);
        __builtin_memcpy(at, staged, (columns - d) * sizeof(Storage));
      }
    }
  }
}

}  // namespace attile::ATTILE_ISA
