// The compiled kernels: each file forward_<type>_<head dims>.cu has those of a bucket of head dims. And what is queued before them (prepare.cu).
#pragma once

#include <cstdint>
#include <span>

#include "core/dtype.hpp"
#include "cuda/forward/sm90/params.cuh"
#include "cuda/forward/sm90/work.hpp"

namespace attile::cuda::sm90 {

struct Instance {
  Kind kind;
  int to_keys;  // takes sequences of up to so many keys
  int dim, dim_v;
  int tile_m, tile_n;
  int bias_columns;  // kBias: of a box
  bool dynamic;      // wants the counter
  int shared_bytes;
  void (*launch)(const Params&, int blocks, void* stream);
};

// Of each kind those of few keys first.
std::span<const Instance> forward_bf16_64();
std::span<const Instance> forward_bf16_96();
std::span<const Instance> forward_bf16_128();
std::span<const Instance> forward_bf16_192();  // head_dim_v 128
std::span<const Instance> forward_bf16_256();
std::span<const Instance> forward_f16_64();
std::span<const Instance> forward_f16_96();
std::span<const Instance> forward_f16_128();
std::span<const Instance> forward_f16_192();
std::span<const Instance> forward_f16_256();
std::span<const Instance> forward_e4m3();

// TileRanges of segment ids: tiles is [batch][m_tiles], tile_m positions each. Clears the counter too.
void find_segment_tiles(const SegmentParams& segments, int batch, int seqlen_q, int seqlen_k, int m_tiles, int tile_m, int tile_n, int4* tiles,
                        unsigned* counter, void* stream);

// Elements of `bytes` bytes, nonzero: attend; strides in bytes. To MaskBits of [batches][heads][rows], and TileRanges of [batches][heads][m_tiles].
struct MaskBytes {
  const char* data;
  int64_t batch, head, row, key;
  int bytes, batches, heads, rows, keys;
};
void find_mask_bits(const MaskBytes& mask, int words, uint32_t* bits, void* stream);
void find_mask_tiles(const uint32_t* bits, int planes, int rows, int words, int m_tiles, int tile_m, int tile_n, int n_tiles, int4* tiles,
                     unsigned* counter, void* stream);

// log(sum_n exp(sink_n)) of each head.
struct SinkLists {
  const char* data;
  int64_t head, next;  // in bytes
  DType dtype;
  int count;
};
void sum_sinks(const SinkLists& sinks, int heads, float* sums, void* stream);

// V of E4m3 as the products want it, see transpose.cuh.
struct TransposeParams {
  const char* v;
  int64_t batch, row, head;  // strides in bytes; each row begins on 16
  uint8_t* to;               // [batch, packed: 1][heads][dim_v][to_row]
  int64_t to_row;
  Lengths keys;
  int sequences, heads, head_dim_v, dim_v;  // of what is read, and written
};
void transpose_values(const TransposeParams& p, int batch, void* stream);

}  // namespace attile::cuda::sm90
