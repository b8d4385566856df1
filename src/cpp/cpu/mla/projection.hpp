// The product by which latents become keys and values, and queries and outputs pass through the latent space:
//
//   C [rows][columns] = A [rows][depth] W [depth][columns]     summed in the accumulator's type, rounded once to the input dtype
//
// It is the product of the scores (forward/product.hpp) with other names: rows of A are its keys, columns of W its lanes. So W, a
// head's slice of a weight, is packed once in panels of two vectors of columns; A, once for all slices that meet it, as keys are.
// Cost: rows * depth * columns multiply-adds, 24 for 14 loads; what else is done is a copy of each operand and of C.
#pragma once

#include "cpu/forward/product.hpp"
#include "cpu/mla/columns.hpp"

namespace attile::ATTILE_ISA {

// bfloat16 pairs travel as float32: two neighbours along the depth are one.
inline constexpr int kProjectionPair = kBf16Pairs ? 2 : 1;

// Columns lie one after the other: rows of W become rows of the panel.
template <class T>
inline void pack_weight_rows(const WeightSlice& w, int64_t column, T* panel) {
  constexpr int W = kLanes<T>;
  const int64_t columns = w.columns - column < kPanel<T> ? w.columns - column : kPanel<T>;
  const char* data = w.data + column * element_bytes(w.dtype);
  if constexpr (kBf16Pairs) {
    pack_value_pairs([&](int64_t l) { return data + l * w.depth_stride; }, w.depth, columns, kPanel<T>, panel);
  } else {
    with_input_format<T>(w.dtype, [&](auto format) {
      using Format = decltype(format);
      constexpr int64_t kSize = sizeof(typename Format::Storage);
      for (int64_t l = 0; l < w.depth; ++l) {
        const char* from = data + l * w.depth_stride;
        for (int64_t c = 0; c < columns; c += W)
          store(panel + l * kPanel<T> + c,
                c + W <= columns ? load_as<T, Format>(from + c * kSize) : load_some<T, Format>(from + c * kSize, columns - c));
      }
    });
  }
}

// The depth lies contiguously: a square of columns and depth at a time is transposed in registers. Columns behind the last are its copies.
template <class T>
inline void pack_weight_columns(const WeightSlice& w, int64_t column, T* panel) {
  const DType dtype = kBf16Pairs ? DType::f32 : w.dtype;
  with_input_format<T>(dtype, [&](auto format) {
    using Format = decltype(format);
    using Storage = typename Format::Storage;
    for (int n = 0; n < kPanelVectors; ++n) {
      const int64_t first = column + n * kLanes<T>;
      if (first >= w.columns) return;
      const auto column_at = [&](int l) { return w.data + (first + l < w.columns ? first + l : w.columns - 1) * w.column_stride; };
      for_each_transposed<T, Storage>(
          column_at, sizeof(Storage), w.depth / kProjectionPair, [](const void* p) { return load_as<T, Format>(p); },
          [&](int64_t d, Vec<T> lanes) { store(panel + d * kPanel<T> + n * kLanes<T>, lanes); });
    }
  });
}

template <class T>
void pack_weight(const WeightSlice& w, void* to) {
  T* panel = static_cast<T*>(to);
  for (int64_t column = 0; column < w.columns; column += kPanel<T>, panel += w.depth / kProjectionPair * kPanel<T>) {
    if (w.column_stride == element_bytes(w.dtype)) {
      pack_weight_rows<T>(w, column, panel);
    } else {
      pack_weight_columns<T>(w, column, panel);
    }
  }
}

template <class T>
void pack_rows(const ProjectionRows& a, int64_t depth, DType dtype, void* to) {
  const int64_t padded = round_up(a.count, kBlockStep);
  pack_keys<T>([&](int64_t j) { return a.data + j * a.stride; }, kBf16Pairs ? DType::f32 : dtype, a.count, padded, depth / kProjectionPair,
               padded, static_cast<T*>(to));
}

template <class T>
void project(const void* a, int64_t rows, const void* w, int64_t depth, int64_t columns, DType dtype, char* to, int64_t stride,
             void* scratch) {
  const int64_t padded = round_up(rows, kBlockStep), words = depth / kProjectionPair;
  const T *from = static_cast<const T*>(a), *panel = static_cast<const T*>(w);
  T* c = static_cast<T*>(scratch);
  with_input_format<T>(dtype, [&](auto format) {
    using Format = decltype(format);
    for (int64_t column = 0; column < columns; column += kPanel<T>, panel += words * kPanel<T>) {
      const int64_t here = columns - column < kPanel<T> ? columns - column : kPanel<T>;
      if (here > kLanes<T>) {
        scores_product<T, kPanelVectors>(from, padded * kChunk, padded, panel, words, c);
      } else {
        scores_product<T, 1>(from, padded * kChunk, padded, panel, words, c);
      }
      write_columns<T, Format>(c, rows, here, to + column * static_cast<int64_t>(sizeof(typename Format::Storage)), stride);
    }
  });
}

extern const ForwardIsa kForward;
extern const MlaIsa kMla;
#if ATTILE_ISA_BF16_PAIRS
const MlaIsa kMla = {&kForward,
                     kProjectionPair,
                     {pack_weight<float>, nullptr},
                     {pack_rows<float>, nullptr},
                     {project<float>, nullptr},
                     {project<float>, nullptr}};
#else
const MlaIsa kMla = {&kForward,
                     kProjectionPair,
                     {pack_weight<float>, pack_weight<double>},
                     {pack_rows<float>, pack_rows<double>},
                     {project<float>, project<double>},
                     {project<float>, project<double>}};
#endif

}  // namespace attile::ATTILE_ISA
