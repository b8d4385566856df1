// A unit of MLA decoding: a block of rows (query tokens times heads, r = i * heads + h) of one sequence against one range of its
// keys. As in forward/unit.hpp it is the whole interface between the driver and the kernels, and plain data.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/forward/unit.hpp"

namespace attile {

// O in a BlockState has room for columns in multiples of this.
inline constexpr int64_t kStateColumns = 64;

// What the scratch of a kernel depends on.
struct MlaDecodeShape {
  int64_t rows;          // most rows of a block, padded to whole panels
  int64_t latent, rope;  // L, R
  int64_t rope_heads;    // rope keys of one key: 1, or a head's own for each of the heads
  int64_t block_k;
  DType dtype;
};

struct RopeRow {
  const char* q;  // null: R = 0
  int64_t head;   // which rope key; 0 where there is one for all
};

struct MlaDecodeUnit {
  Unit base;                               // rows (q is q_nope's), head_dim_v = L, k is ckv with pages.k_page; scratch is not used
  const RopeRow* rope;                     // parallel to base.rows
  const char* kpe;                         // of key 0; of page 0 where there are pages
  int64_t kpe_stride, kpe_page, kpe_head;  // bytes between keys, pages, heads
  MlaDecodeShape shape;
  char* scratch;              // aligned to 64 bytes
  bool expected;              // the unit before has asked for its first keys
  bool packed;                // scratch holds what the unit before has made of these rows' queries
  // The unit that this worker will take after this one, as far as its keys and its part are concerned; null: none. Asked when this unit's
  // last keys are at hand, possibly more than once: it is decided then, and not earlier, so that workers end together.
  const MlaDecodeUnit* (*next)(void* path);
  void* path;
};

// What one instruction set offers; index 0: float32 accumulators, 1: float64 (may be null).
struct MlaDecodeIsa {
  int vector_bytes;
  int block_step;                                   // keys of a tile are computed in multiples of this
  int64_t (*block_k)(const MlaDecodeShape& shape);  // keys of a tile
  size_t (*scratch_bytes[2])(const MlaDecodeShape& shape);
  void (*attend[2])(const MlaDecodeUnit& unit, bool finish);
  // Columns [begin, begin + unit.head_dim_v) of parts that have `latent` of them; rows and state of the unit are those of the columns alone.
  void (*join[2])(const Unit& unit, const BlockState* parts, int64_t count, int64_t begin, int64_t latent);
};

}  // namespace attile
