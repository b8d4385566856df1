// What the decode driver, compiled for any CPU, and its kernels, compiled once for every instruction set, say to each other: plain
// data, no functions.
//
// Row r of key head h is query position r / group and query head h * group + r % group. State is kept for each key head and row, in
// the accumulator's type: the maximum of the scores as they are before the factor of exp2, so that differences from it are exact;
// the sum of exp2; and out, [columns], not divided by the sum, in the column order of the format.
#pragma once

#include <cstdint>

#include "core/dtype.hpp"
#include "cpu/forward/unit.hpp"

namespace attile {

// Byte offsets in the state of one part of the keys.
struct DecodeLayout {
  int64_t max, sum, out, bytes;
  int64_t columns;  // head_dim_v, padded
};

// A part of the keys of one sequence, for some key heads.
struct DecodeKeys {
  const char *k, *v;  // key 0, head 0 of the sequence; of page 0 where there are pages
  PageRow pages;
  int64_t begin, end;
  int64_t head_begin, head_end;
};

// The work of one call: a part of the keys.
struct DecodeUnit {
  const char* q;  // position 0, head 0
  int64_t q_position, q_head;  // bytes
  int64_t rows;   // of a key head
  int64_t group;
  int64_t head_dim, head_dim_v;
  DType dtype;

  DecodeKeys keys;
  DecodeKeys next;  // what this thread does afterwards; begin == end: not known
  int64_t k_stride, v_stride, k_head, v_head;  // bytes between keys and between heads
  const int64_t *row_begin, *row_end;  // [rows]: the keys that a row sees by position

  int64_t block_k;   // keys a block
  int64_t block_room;  // a multiple of the lanes
  int64_t row_step;  // most rows of a block
  double softmax_scale, softcap;  // softcap 0: none

  char* part;  // the state that is computed
  DecodeLayout layout;
  // Scratch.
  void* queries;         // [head][row][head_dim, padded]
  void* scores;          // [block_room][row of a block]
  void* running;         // [head][block of rows][2][lanes]: maximum and sum
  const char** address;  // [4][block_room]: rows of K and V, of this and the next block
  void* runs;            // [2 * block_k * heads][2]: addresses of what is asked for
};

// The parts of one sequence, joined for one key head.
struct DecodeJoin {
  const char* parts;
  int64_t count;      // of parts
  DecodeLayout layout;
  int64_t first_row;  // in a part's state
  const QueryRow* rows;  // out, lse, sinks
  int64_t row_count, head_dim_v;
  DType dtype;
  double softmax_scale, softcap;
};

// What one instruction set offers; index 0: float32 accumulators, 1: float64.
struct DecodeIsa {
  int vector_bytes;
  void (*attend[2])(const DecodeUnit& unit);
  void (*join[2])(const DecodeJoin& join);
};

}  // namespace attile
