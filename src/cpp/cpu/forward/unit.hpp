// A unit of work: one block of query rows of one key head against one range of keys. It is the whole interface between the
// driver, compiled for any CPU, and the kernels, compiled once for every instruction set: plain data, no functions.
//
// Rows. A row is a query position i and a head g of the key head's group, r = i * group + g, so that a tile of K and V serves
// all heads of the group. All that differs between rows is in QueryRow; where it came from (packed, padded, strided) is not.
//
// Scratch. Query rows are lanes: a panel is kPanelVectors vectors of rows, and everything below is [panel][..][row of panel].
#pragma once

#include <cstdint>

#include "core/dtype.hpp"

namespace attile {

inline constexpr int kPanelVectors = 2;
// Head dims are walked in chunks of this many elements; head_dim_v is padded to a multiple of it.
inline constexpr int kChunk = 16;
// Keys of which kernels on tiles hold scores at a time.
inline constexpr int kTileGroup = 64;
// Of a panel's bfloat16 bias as tiles, and of two marks for each group of keys.
inline constexpr int64_t bias_tile_bytes(int64_t block_k) { return block_k * 32 * 2 + (block_k / kTileGroup + 1) * 2; }

struct QueryRow {
  const char* q;
  const char* bias;  // element of key 0; null: none
  const char* mask;
  char* out;
  char* lse;                   // null: not wanted
  int64_t key_begin, key_end;  // keys seen by position
  int64_t segment;             // negative: sees nothing
  double sink_max, sink_sum;   // maximum * log2(e), and the sum relative to it; -inf and 0 without sinks
  uint32_t philox_query, philox_head, philox_word;
};

// A sequence's row of a page table: key j lies in page entries[j / page_size].
struct PageRow {
  const char* entries;  // null: the keys lie at one stride
  DType dtype;          // i32 or i64
  int64_t stride;       // bytes between entries
  int64_t page_size;
  int64_t k_page, v_page;  // bytes between pages
};

struct Unit;

// Softmax state of a block, in the accumulator's type: max [rows] (times log2 e), sum [rows], out [panel][head_dim_v][row].
struct BlockState {
  void* max;
  void* sum;
  void* out;
};

struct UnitScratch {
  void* q;       // [panel][head_dim][row]
  void* k;       // [chunk][k_rows][kChunk]
  void* v;       // [block_k][v_row]
  void* scores;  // [block_k][row], of one panel
  int64_t* ids;  // [block_k]
  // Of kernels on tiles (cpu/amx), which lay out q, k, v and scores their own way.
  void* probabilities;
  void* tops;  // [rows]
  void* bias;  // of a panel, where it goes through tiles
};

// Makes rows of K and V that lie nowhere in memory: rows [begin, end) at unit.k and unit.v, over those of the call before.
struct TileMaker {
  void (*make)(const Unit& unit, int64_t begin, int64_t end);  // null: K and V lie in memory
  const void* context;
};

struct Unit {
  const QueryRow* rows;  // padded to whole vectors with copies of the last one
  int64_t count;         // rows that are written
  int64_t head_dim, head_dim_v;
  DType dtype;

  const char* k;  // key 0 of the sequence; of page 0 where there are pages
  const char* v;
  int64_t k_stride, v_stride;  // bytes between keys
  PageRow pages;
  TileMaker maker;
  int64_t key_begin, key_end;  // this unit's part of the keys
  int64_t block_k;
  int64_t k_rows;  // rows of a chunk of the K tile: block_k + block_step
  int64_t v_row;   // elements of a row of the V tile

  double softmax_scale;
  double softcap;       // 0: none
  DType logits_dtype;   // none: not rounded
  DType bias_dtype;     // none: no bias
  int64_t bias_stride;  // bytes between keys; may be 0
  int32_t mask_bytes;   // size of a mask element; 0: no mask
  int64_t mask_stride;  // bytes between keys; may be 0
  const char* key_ids;  // id of key 0; null: no segment ids
  DType key_ids_dtype;  // i32 or i64
  int64_t key_ids_stride;
  bool dropout;
  uint64_t dropout_seed;
  uint32_t dropout_threshold, dropout_sequence;
  double dropout_scale;
  bool normalize;

  UnitScratch scratch;
  BlockState state;
  bool keys_ahead;    // L2 has room for the next tile's rows of K and V beside all this
  bool out_is_large;  // more than L2 holds
};

// What one instruction set offers; index 0: float32 accumulators, 1: float64.
struct ForwardIsa {
  int vector_bytes;
  int block_step;  // keys of a tile and head_dim_v are computed in multiples of this
  // Computes `state`; when `finish`, also writes out and lse.
  void (*attend[2])(const Unit& unit, bool finish);
  // Joins the states of the parts of the key range in their order, and writes out and lse.
  void (*join[2])(const Unit& unit, const BlockState* parts, int64_t count);
  int tile_parts = 0;  // bfloat16 parts of an element in tiles of AMX; 0: vectors
};

}  // namespace attile
