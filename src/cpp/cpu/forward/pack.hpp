// Copies into scratch, converting to the accumulator's type. Sources have contiguous rows at any address; nothing outside the
// given rows and columns is read.
//
//   Q  -> [head_dim][row]           transposed in registers, once a block
//   K  -> [chunk][k_rows][kChunk]   rows that one product step broadcasts lie one cache line apart
//   V  -> [block_k][v_row]          v_row is odd in cache lines, so that a column of the tile uses all sets of L1
//
// K and V are copied once for all panels of a block: at 256 rows a copied element feeds 16 multiply-adds of 16 lanes.
#pragma once

#include "cpu/forward/panel.hpp"
#include "cpu/simd/convert.hpp"
#include "cpu/simd/transpose.hpp"

namespace attile::ATTILE_ISA {

// Calls f with the format of a floating dtype.
template <class F>
inline void with_format(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64:
      return f(F64{});
    case DType::f32:
      return f(F32{});
    case DType::f16:
      return f(F16{});
    default:
      return f(Bf16{});
  }
}

// The size of an element of a floating dtype. core's table would leave its symbol in every level.
inline int64_t element_bytes(DType dtype) {
  int64_t bytes = 0;
  with_format(dtype, [&](auto format) { bytes = sizeof(typename decltype(format)::Storage); });
  return bytes;
}

// Calls f with the format of q, k, v and out, whose dtype belongs to the accumulator.
template <class T, class F>
inline void with_input_format(DType dtype, F&& f) {
  if constexpr (sizeof(T) == 8) {
    f(F64{});
  } else {
    switch (dtype) {
      case DType::f32:
        return f(F32{});
      case DType::f16:
        return f(F16{});
      default:
        return f(Bf16{});
    }
  }
}

// Copies `count` elements, `stride` bytes apart, and fills up to kLanes with zeros: where a whole vector may not be read, or the
// elements are not contiguous.
template <class T, class Storage>
inline __attribute__((noinline)) void stage(const char* src, int64_t stride, int64_t count, Storage* to) {
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    to[i] = Storage{};
    if (i < count) __builtin_memcpy(&to[i], src + i * stride, sizeof(Storage));
  }
}

template <class T, class Format>
inline Vec<T> load_some(const char* src, int64_t count) {
  using Storage = typename Format::Storage;
  Storage staged[kLanes<T>];
  stage<T, Storage>(src, sizeof(Storage), count, staged);
  return load_as<T, Format>(staged);
}

// Calls apply(element, lanes) for `count` consecutive elements of kLanes rows: lanes[l] = row l's element. row_at(l) is the
// address of row l's first element, load_row(p) makes kLanes elements at p a vector, Storage is their type; where it is T they are taken
// as they are.
template <class T, class Storage, class RowAt, class Load, class Apply>
inline __attribute__((always_inline)) void for_each_transposed(RowAt row_at, int64_t stride, int64_t count, Load load_row, Apply apply) {
  constexpr int W = kLanes<T>;
  Storage staged[W][W];
  const char *row[W], *staged_row[W];
  for (int l = 0; l < W; ++l) {
    row[l] = row_at(l);
    staged_row[l] = reinterpret_cast<const char*>(staged[l]);
  }
  int64_t first = 0;
  if (stride == static_cast<int64_t>(sizeof(Storage))) {
    if constexpr (__is_same(Storage, T)) {
      for (; first + W <= count; first += W) {
        Vec<T> x[W];
        load_transposed<T>([&](int l) { return row[l] + first * stride; }, x);
#pragma GCC unroll 16
        for (int e = 0; e < W; ++e) apply(first + e, x[e]);
      }
    }
    // Rows often lie a power of two apart, all in one set of a cache: where a square takes less than a line, a strip of each row is read at
    // once.
    constexpr int kStrip = 4 * W, kGap = 64 / sizeof(Storage);
    Storage strip[W][kStrip + kGap];
    for (; first + kStrip <= count; first += kStrip) {
      for (int l = 0; l < W; ++l) __builtin_memcpy(strip[l], row[l] + first * stride, sizeof(Storage) * kStrip);
      for (int64_t i = 0; i < kStrip; i += W) {
        Vec<T> x[W];
#pragma GCC unroll 16
        for (int l = 0; l < W; ++l) x[l] = load_row(strip[l] + i);
        transpose<T>(x);
#pragma GCC unroll 16
        for (int e = 0; e < W; ++e) apply(first + i + e, x[e]);
      }
    }
  }
  for (; first < count; first += W) {
    const int64_t here = count - first < W ? count - first : W;
    const char* const* from = row;
    int64_t offset = first * stride;
    if (here < W || stride != static_cast<int64_t>(sizeof(Storage))) {
      for (int l = 0; l < W; ++l) stage<T, Storage>(row[l] + offset, stride, here, staged[l]);
      from = staged_row;
      offset = 0;
    }
    Vec<T> x[W];
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l) x[l] = load_row(from[l] + offset);
    transpose<T>(x);
    if (here == W) {
#pragma GCC unroll 16
      for (int e = 0; e < W; ++e) apply(first + e, x[e]);
    } else {
#pragma GCC unroll 16
      for (int e = 0; e < W; ++e)
        if (e < here) apply(first + e, x[e]);
    }
  }
}

// One vector of rows of Q.
template <class T>
inline void pack_queries(const QueryRow* rows, DType dtype, int64_t head_dim, T* to) {
  with_input_format<T>(dtype, [&](auto format) {
    using Format = decltype(format);
    using Storage = typename Format::Storage;
    for_each_transposed<T, Storage>([&](int l) { return rows[l].q; }, sizeof(Storage), head_dim,
                                    [](const void* p) { return load_as<T, Format>(p); },
                                    [&](int64_t d, Vec<T> lanes) { store(to + d * kPanel<T>, lanes); });
  });
}

// `keys` rows, the j-th at row_at(j), and zeros up to `padded` of them.
template <class T, class RowAt>
inline void pack_keys(RowAt row_at, DType dtype, int64_t keys, int64_t padded, int64_t head_dim, int64_t k_rows, T* to) {
  constexpr int W = kLanes<T>;
  with_input_format<T>(dtype, [&](auto format) {
    using Format = decltype(format);
    constexpr int64_t kSize = sizeof(typename Format::Storage);
    for (int64_t j = 0; j < padded; ++j) {
      const char* from = j < keys ? row_at(j) : nullptr;
      T* row = to + j * kChunk;
      for (int64_t d = 0; d < head_dim; d += W) {
        Vec<T> x = {};
        if (j < keys) x = d + W <= head_dim ? load_as<T, Format>(from + d * kSize) : load_some<T, Format>(from + d * kSize, head_dim - d);
        store(row + (d / kChunk) * k_rows * kChunk + d % kChunk, x);
      }
    }
  });
}

// `keys` rows, columns padded with zeros to a multiple of kChunk.
template <class T, class RowAt>
inline void pack_values(RowAt row_at, DType dtype, int64_t keys, int64_t head_dim_v, int64_t v_row, T* to) {
  constexpr int W = kLanes<T>;
  with_input_format<T>(dtype, [&](auto format) {
    using Format = decltype(format);
    constexpr int64_t kSize = sizeof(typename Format::Storage);
    const int64_t padded = (head_dim_v + kChunk - 1) / kChunk * kChunk;
    for (int64_t j = 0; j < keys; ++j) {
      const char* from = row_at(j);
      T* row = to + j * v_row;
      for (int64_t d = 0; d < padded; d += W) {
        Vec<T> x = {};
        if (d + W <= head_dim_v) {
          x = load_as<T, Format>(from + d * kSize);
        } else if (d < head_dim_v) {
          x = load_some<T, Format>(from + d * kSize, head_dim_v - d);
        }
        store(row + d, x);
      }
    }
  });
}

// bfloat16 pairs of keys 2 j and 2 j + 1: [pair][v_row]. The partner of a last odd key is zero.
template <class RowAt>
inline void pack_value_pairs(RowAt row_at, int64_t keys, int64_t head_dim_v, int64_t v_row, float* to) {
  constexpr int W = kLanes<float>;
  using Half = VecN<uint16_t, W>;
  using Word = VecN<uint32_t, W>;
  const int64_t padded = (head_dim_v + kChunk - 1) / kChunk * kChunk;
  const auto take = [&](int64_t j, int64_t d) {
    if (j >= keys || d >= head_dim_v) return Word{};
    const char* from = row_at(j) + d * 2;
    if (d + W <= head_dim_v) return __builtin_convertvector(load<Half>(from), Word);
    uint16_t staged[W];
    stage<float, uint16_t>(from, 2, head_dim_v - d, staged);
    return __builtin_convertvector(load<Half>(staged), Word);
  };
  for (int64_t j = 0; j < keys; j += 2) {
    for (int64_t d = 0; d < padded; d += W) store(to + j / 2 * v_row + d, bit_cast<Vec<float>>(take(j, d) | (take(j + 1, d) << 16)));
  }
}

}  // namespace attile::ATTILE_ISA
