// Rope keys of each head: lanes, which are rows of different heads, meet different keys.
#pragma once

#include "cpu/forward/pack.hpp"
#include "cpu/mla_decode/keys.hpp"

namespace attile::ATTILE_ISA {

// `dims` elements of a vector of rows to to[d * kPanel], the first of row l at row_at(l).
template <class T, class RowAt>
inline void pack_rows(RowAt row_at, DType dtype, int64_t dims, T* to) {
  with_input_format<T>(dtype, [&](auto format) {
    using Format = decltype(format);
    using Storage = typename Format::Storage;
    for_each_transposed<T, Storage>(
        row_at, sizeof(Storage), dims, [](const void* p) { return load_as<T, Format>(p); },
        [&](int64_t d, Vec<T> lanes) { store(to + d * kPanel<T>, lanes); });
  });
}

// s += q_pe . kpe of each row's own head.
template <class T, int N>
inline __attribute__((noinline)) void add_head_rope(const MlaDecodeUnit& m, const RopeRow* rows, const T* q, const KeyRow* keys,
                                                    int64_t count, T* s) {
  with_input_format<T>(m.base.dtype, [&](auto format) {
    using Format = decltype(format);
    using Storage = typename Format::Storage;
    for (int n = 0; n < N; ++n) {
      int64_t offset[kLanes<T>];
      for (int l = 0; l < kLanes<T>; ++l) offset[l] = rows[n * kLanes<T> + l].head * m.kpe_head;
      for (int64_t j = 0; j < count; ++j) {
        const char* kpe = keys[j].kpe;
        T* at = s + j * kPanel<T> + n * kLanes<T>;
        Vec<T> sum{};
        for_each_transposed<T, Storage>(
            [&](int l) { return kpe + offset[l]; }, sizeof(Storage), m.shape.rope, [](const void* p) { return load_as<T, Format>(p); },
            [&](int64_t d, Vec<T> lanes) { sum = fma(lanes, load<Vec<T>>(q + d * kPanel<T> + n * kLanes<T>), sum); });
        store(at, load<Vec<T>>(at) + sum);
      }
    }
  });
}

}  // namespace attile::ATTILE_ISA
