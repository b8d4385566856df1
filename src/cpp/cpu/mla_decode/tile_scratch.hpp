// What MLA decoding on tiles keeps in scratch, and how many keys a block of it holds.
#pragma once

#include "cpu/amx/product.hpp"
#include "cpu/mla_decode/prefetch.hpp"
#include "cpu/mla_decode/tile_keys.hpp"

namespace attile::ATTILE_ISA {

// A chunk of 32 dims of the rope part: where it begins in a row of kpe, and which half of the panel's rows it meets.
struct RopeChunk {
  int64_t offset;
  bool left, right;
};

struct TileScratch {
  int64_t panels, latent_chunks, rope_chunks;  // the last two for one panel, at most
  int64_t value_tiles;                         // of 16 columns, a multiple of four
  size_t q, rope, rope_counts, q_rope, v, s, p, o, rows, groups, runs, staged, zeros, bytes;

  explicit TileScratch(const MlaDecodeShape& shape) : bytes(0) {
    const RowBytes row(shape);
    panels = shape.rows / kTileLanes;
    latent_chunks = round_up(row.ckv, kChunkBytes) / kChunkBytes;
    const int64_t own = kTileLanes * (shape.rope * 2 / kChunkBytes + 2);  // chunks of 32 heads, each cut at both ends
    const int64_t all = row.kpe_padded / kChunkBytes;
    rope_chunks = shape.rope_heads > 1 && own < all ? own : all;
    value_tiles = row.ckv_padded / kChunkBytes * 2;
    const int64_t keys = round_up(shape.block_k, kUnitKeys), groups_of_32 = keys / kTileStep;
    q = take(panels * (latent_chunks + rope_chunks) * kStepBytes);
    rope = take(panels * rope_chunks * sizeof(RopeChunk));
    rope_counts = take(panels * sizeof(int64_t));
    q_rope = take(shape.rope_heads > 1 ? shape.rows * shape.rope * sizeof(float) : 0);
    v = take((groups_of_32 < 4 ? 4 : groups_of_32) * kStepBytes);  // 32 columns; or twice 64 of 32 keys
    s = take(keys * kLaneRowBytes);
    p = take(panels * groups_of_32 * kStepBytes);
    o = take(panels * value_tiles * 2 * kTileBytes);
    rows = take(2 * keys * sizeof(KeyRow));
    groups = take(keys / kGroupKeys * sizeof(KeyGroup));
    runs = take(2 * keys * sizeof(PrefetchRun));
    staged = take(keys * row.padded());
    zeros = take(row.padded());
  }

 private:
  size_t take(size_t size) {
    const size_t begin = bytes;
    bytes += (size + 63) / 64 * 64;
    return begin;
  }
};

// 128 keys: larger blocks load and store O less often, but what was asked for waits longer in L2; rows that may have to be copied within 1 MB.
inline int64_t tile_block_k(const MlaDecodeShape& shape) {
  constexpr int64_t kKeys = 128, kStaged = 1 << 20;
  const int64_t fitting = kStaged / RowBytes(shape).padded() / kUnitKeys * kUnitKeys;
  return fitting < kUnitKeys ? kUnitKeys : fitting < kKeys ? fitting : kKeys;
}

}  // namespace attile::ATTILE_ISA
