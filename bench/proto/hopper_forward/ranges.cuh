// Small kernels before the main one, a few microseconds each: which key tiles a query tile must visit and which of them need no test
// (TileRanges), from segment ids or a mask, and a mask's bytes as bits.
#pragma once

#include "scores.cuh"

// TileRanges of segment ids; a block a (query tile, batch), a few microseconds before the main kernel.
static __global__ void segment_tiles_kernel(const int* segments_q, const int* segments_k, int seqlen_q, int seqlen_k, int tile_m, int tile_n,
                                            int4* tiles) {
  __shared__ int low_q, high_q, begin, end, clean_begin, clean_end;
  const int* ids_q = segments_q + int64_t(blockIdx.y) * seqlen_q;
  const int* ids_k = segments_k + int64_t(blockIdx.y) * seqlen_k;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, count = (seqlen_k + tile_n - 1) / tile_n;
  auto range = [&](const int* ids, int from, int to) {  // smallest and largest id
    int low = INT32_MAX, high = INT32_MIN;
    for (int i = from + lane; i < to; i += 32) low = min(low, ids[i]), high = max(high, ids[i]);
    return int2{__reduce_min_sync(~0u, low), __reduce_max_sync(~0u, high)};
  };
  if (warp == 0) {
    const int first = blockIdx.x * tile_m;
    const int2 q = range(ids_q, first, min(first + tile_m, seqlen_q));
    if (lane == 0) low_q = q.x, high_q = q.y, begin = clean_begin = clean_end = count, end = 0;
  }
  __syncthreads();
  auto clean = [&](int2 k) { return k.x == k.y && low_q == high_q && k.x == low_q && k.x >= 0; };
  for (int j = warp; j < count; j += warps) {
    const int2 k = range(ids_k, j * tile_n, min((j + 1) * tile_n, seqlen_k));
    if (lane == 0 && k.x <= high_q && k.y >= low_q && k.y >= 0 && high_q >= 0) {
      atomicMin(&begin, j), atomicMax(&end, j + 1);
      if (clean(k)) atomicMin(&clean_begin, j);
    }
  }
  __syncthreads();
  for (int j = clean_begin + 1 + warp; j < end; j += warps) {  // up to the first that is not clean
    const int2 k = range(ids_k, j * tile_n, min((j + 1) * tile_n, seqlen_k));
    if (!clean(k)) {
      if (lane == 0) atomicMin(&clean_end, j);
      break;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) tiles[blockIdx.y * gridDim.x + blockIdx.x] = {begin, end, clean_begin, max(clean_begin, min(clean_end, end))};
}

// MaskBits of mask bytes [batches][heads][rows][keys], 16 keys a thread.
static __global__ void mask_bits_kernel(ScoreParams p, int heads, int rows, int seqlen_k, int row_words, uint32_t* bits, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int pieces = row_words * 2, key = i % pieces * 16;
  const int64_t line = i / pieces;
  const uint8_t* from = p.mask + line / rows / heads * p.mask_batch + line / rows % heads * p.mask_head + line % rows * p.mask_row + key;
  uint32_t x = 0;
  if (key + 16 <= seqlen_k && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(from));
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) x |= ((__vcmpne4(w[k], 0) & 0x01010101u) * 0x10204080u >> 28) << 4 * k;
  } else {
    for (int k = 0; k < 16 && key + k < seqlen_k; ++k) x |= uint32_t(from[k] != 0) << k;
  }
  reinterpret_cast<uint16_t*>(bits)[i] = uint16_t(x);
}

// TileRanges of a mask; a block a (query tile, batch and head).
static __global__ void mask_tiles_kernel(const uint32_t* bits, int rows, int row_words, int tile_m, int tile_n, int count, int4* tiles) {
  __shared__ int begin, end, clean_begin, clean_end;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, words = tile_n / 32;
  const int first = rows == 1 ? 0 : blockIdx.x * tile_m, last = min(rows, first + tile_m);
  const uint32_t* from = bits + int64_t(blockIdx.y) * rows * row_words;
  if (threadIdx.x == 0) begin = clean_begin = clean_end = count, end = 0;
  __syncthreads();
  auto look = [&](int j) {  // x: some bit, y: all bits
    uint32_t some = 0, all = ~0u;
    for (int i = lane; i < (last - first) * words; i += 32) {
      const uint32_t w = from[int64_t(first + i / words) * row_words + j * words + i % words];
      some |= w, all &= w;
    }
    return int2{__reduce_or_sync(~0u, some) != 0, __reduce_and_sync(~0u, all) == ~0u};
  };
  for (int j = warp; j < count; j += warps) {
    const int2 x = look(j);
    if (lane == 0 && x.x) atomicMin(&begin, j), atomicMax(&end, j + 1);
    if (lane == 0 && x.y) atomicMin(&clean_begin, j);
  }
  __syncthreads();
  for (int j = clean_begin + 1 + warp; j < end; j += warps)
    if (!look(j).y) {
      if (lane == 0) atomicMin(&clean_end, j);
      break;
    }
  __syncthreads();
  if (threadIdx.x == 0) tiles[blockIdx.y * gridDim.x + blockIdx.x] = {begin, end, clean_begin, max(clean_begin, min(clean_end, end))};
}
