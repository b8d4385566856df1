// GQA packing: the rows of a query tile are positions, or `heads` query heads of one key head at each of them, so that short queries fill the tile
// and their keys are read once. Heads fastest: row r is position r / heads, head r % heads.
#pragma once

#include "cuda/forward/sm90/mask.cuh"

namespace attile::cuda::sm90 {

struct RowPacking {
  int heads;       // that divide a group; 1: rows are positions
  int positions;   // of a tile: kTileM / heads, rounded down
  int reciprocal;  // 2^16 / heads, rounded up: exact for the rows that there are

  __device__ int rows() const { return heads * positions; }  // the rest of the tile is idle
  __device__ int position(int row) const { return row * reciprocal >> 16; }
};

// Position in the sequence of row `row` of tile m; one that no sequence has if it is idle.
__device__ __forceinline__ int query_of(const RowPacking& p, int m, int row) {
  return row < p.rows() ? m * p.positions + p.position(row) : Band::kUnlimited;
}

}  // namespace attile::cuda::sm90
