// Small kernels before the main one, a few microseconds each: which key tiles a query tile must visit and which of them need no test (TileRanges),
// from segment ids or a mask; a mask's elements as bits; sinks as one number a head.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/forward/sm90/instances.cuh"
#include "cuda/tile/element.cuh"

namespace attile::cuda::sm90 {

inline constexpr int kRangeThreads = 512;

// What the warps of a block find out about the key tiles 0 to `count`: which may be seen, and where the first run of clean ones is. look(j) is
// a warp's {seen, clean}, the same in every lane.
template <class Look>
__device__ __forceinline__ void find_ranges(int count, int4* tiles, Look look) {
  __shared__ int begin, end, clean_begin, clean_end;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = kRangeThreads / 32;
  if (threadIdx.x == 0) begin = clean_begin = clean_end = count, end = 0;
  __syncthreads();
  for (int j = warp; j < count; j += warps) {
    const int2 x = look(j);
    if (lane == 0 && x.x) atomicMin(&begin, j), atomicMax(&end, j + 1);
    if (lane == 0 && x.y) atomicMin(&clean_begin, j);
  }
  __syncthreads();
  for (int j = clean_begin + 1 + warp; j < end; j += warps)  // up to the first that is not clean
    if (!look(j).y) {
      if (lane == 0) atomicMin(&clean_end, j);
      break;
    }
  __syncthreads();
  if (threadIdx.x == 0) *tiles = {begin, end, clean_begin, max(clean_begin, min(clean_end, end))};
}

// Smallest and largest of ids[from .. to), as what int32 can say of them: -1 (meets nobody) is itself, more than that is the largest.
__device__ __forceinline__ int2 range_of_ids(const char* ids, int64_t step, bool wide, int from, int to) {
  int low = INT32_MAX, high = INT32_MIN;
  for (int i = from + static_cast<int>(threadIdx.x % 32); i < to; i += 32) {
    const char* at = ids + i * step;
    const int64_t x = wide ? __ldg(reinterpret_cast<const int64_t*>(at)) : __ldg(reinterpret_cast<const int*>(at));
    const int id = static_cast<int>(max(int64_t{-1}, min(x, int64_t{INT32_MAX})));
    low = min(low, id), high = max(high, id);
  }
  return {__reduce_min_sync(~0u, low), __reduce_max_sync(~0u, high)};
}

// A block: a query tile of a batch.
static __global__ void __launch_bounds__(kRangeThreads) segment_tiles_kernel(SegmentParams p, int seqlen_q, int seqlen_k, int m_tiles, int tile_m,
                                                                             int tile_n, int4* tiles, unsigned* counter) {
  if (blockIdx.x == 0 && threadIdx.x == 0) *counter = 0;
  const int m = static_cast<int>(blockIdx.x) % m_tiles, batch = static_cast<int>(blockIdx.x) / m_tiles;
  const int2 q = range_of_ids(p.q + batch * p.q_batch, p.q_row, p.q_wide, m * tile_m, min((m + 1) * tile_m, seqlen_q));
  const char* ids_k = p.k + batch * p.k_batch;
  find_ranges((seqlen_k + tile_n - 1) / tile_n, tiles + blockIdx.x, [&](int j) {
    const int2 k = range_of_ids(ids_k, p.k_row, p.k_wide, j * tile_n, min((j + 1) * tile_n, seqlen_k));
    const bool clean = k.x == k.y && q.x == q.y && k.x == q.x && k.x >= 0 && k.x < INT32_MAX;
    return int2{k.x <= q.y && k.y >= q.x && k.y >= 0 && q.y >= 0, clean};
  });
}

// 16 keys a thread.
static __global__ void __launch_bounds__(256) mask_bits_kernel(MaskBytes p, int words, uint32_t* bits, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (i >= count) return;
  const int pieces = words * 2, key = static_cast<int>(i % pieces) * 16;
  const int64_t line = i / pieces;
  const char* from = p.data + line / p.rows / p.heads * p.batch + line / p.rows % p.heads * p.head + line % p.rows * p.row + key * p.key;
  uint32_t x = 0;
  if (p.bytes == 1 && p.key == 1 && key + 16 <= p.keys && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(from));
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) x |= ((__vcmpne4(w[k], 0) & 0x01010101u) * 0x10204080u >> 28) << 4 * k;
  } else {
    for (int k = 0; k < 16 && key + k < p.keys; ++k) {
      bool some = false;
      for (int b = 0; b < p.bytes; ++b) some |= from[k * p.key + b] != 0;
      x |= uint32_t(some) << k;
    }
  }
  reinterpret_cast<uint16_t*>(bits)[i] = uint16_t(x);
}

// A block: a query tile of a plane (batch and head).
static __global__ void __launch_bounds__(kRangeThreads) mask_tiles_kernel(const uint32_t* bits, int rows, int words, int m_tiles, int tile_m, int tile_n,
                                                                          int n_tiles, int4* tiles, unsigned* counter) {
  if (blockIdx.x == 0 && threadIdx.x == 0) *counter = 0;
  const int m = static_cast<int>(blockIdx.x) % m_tiles, plane = static_cast<int>(blockIdx.x) / m_tiles, each = tile_n / 32;
  const int first = rows == 1 ? 0 : m * tile_m, last = min(rows, first + tile_m);
  const uint32_t* from = bits + int64_t(plane) * rows * words;
  find_ranges(n_tiles, tiles + blockIdx.x, [&](int j) {
    uint32_t some = 0, all = ~0u;
    for (int i = threadIdx.x % 32; i < (last - first) * each; i += 32) {
      const int word = j * each + i % each;  // a row has whole 128s of keys, a tile may go beyond
      const uint32_t w = word < words ? from[int64_t(first + i / each) * words + word] : 0;
      some |= w, all &= w;
    }
    return int2{__reduce_or_sync(~0u, some) != 0, __reduce_and_sync(~0u, all) == ~0u};
  });
}

__device__ __forceinline__ float sink_at(const char* at, DType dtype) {
  if (dtype == DType::f64) return static_cast<float>(__longlong_as_double(static_cast<long long>(load_unaligned<uint64_t>(at))));
  if (dtype == DType::f32) return __uint_as_float(load_unaligned<uint32_t>(at));
  const uint32_t word = load_unaligned<uint16_t>(at);
  return dtype == DType::bf16 ? __uint_as_float(word << 16) : F16::unpack(word).x;
}

// A thread: a head.
static __global__ void __launch_bounds__(128) sinks_kernel(SinkLists p, int heads, float* sums) {
  const int head = static_cast<int>(blockIdx.x * 128 + threadIdx.x);
  if (head >= heads) return;
  const char* from = p.data + head * p.head;
  float top = -INFINITY, sum = 0;
  for (int i = 0; i < p.count; ++i) top = fmaxf(top, sink_at(from + i * p.next, p.dtype));
  for (int i = 0; i < p.count && top > -INFINITY; ++i) sum += expf(sink_at(from + i * p.next, p.dtype) - top);
  sums[head] = top == -INFINITY ? top : top + logf(sum);
}

}  // namespace attile::cuda::sm90
