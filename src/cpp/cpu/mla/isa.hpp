// What one instruction set offers to MLA, beside its forward kernel: a product with weights. The whole interface between the driver,
// compiled for any CPU, and code that is compiled once for each instruction set: plain data, no functions.
#pragma once

#include <cstdint>

#include "cpu/forward/unit.hpp"

namespace attile {

// A head's slice of a weight, as a matrix [depth][columns]; one of the strides is the size of an element.
struct WeightSlice {
  const char* data;
  int64_t depth_stride, column_stride;  // bytes
  int64_t depth, columns;
  DType dtype;
};

struct ProjectionRows {
  const char* data;
  int64_t stride;  // bytes
  int64_t count;
};

// Functions by accumulator; index 0: float32, 1: float64.
struct MlaIsa {
  const ForwardIsa* forward;
  int pair;  // elements of a word; a depth must be a multiple of it
  // Layouts are those of the forward kernel: of queries for weights, of keys for rows (with tiles, see mla/tile_projection.hpp).
  // [panel of two vectors of columns][depth / pair][column]
  void (*pack_weight[2])(const WeightSlice& w, void* to);
  // [chunk of kChunk words][rows, up to a multiple of block_step][kChunk]
  void (*pack_rows[2])(const ProjectionRows& a, int64_t depth, DType dtype, void* to);
  // rows [count][columns] at `to`, `stride` bytes apart. scratch: [rows, up][panel]
  void (*project[2])(const void* a, int64_t rows, const void* w, int64_t depth, int64_t columns, DType dtype, char* to, int64_t stride,
                     void* scratch);
  // The same in the midst of a unit, while the forward kernel holds the tile registers.
  void (*project_within[2])(const void* a, int64_t rows, const void* w, int64_t depth, int64_t columns, DType dtype, char* to,
                            int64_t stride, void* scratch);
};

}  // namespace attile
