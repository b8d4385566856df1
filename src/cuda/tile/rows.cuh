// Rows of a tile, global to shared memory. A row in shared memory is its bytes and 16 more, so that eight rows of ldmatrix, and
// the columns that mma's float32 fragments read, lie in different banks. What does not exist becomes zero and is not read.
#pragma once

#include <cstdint>

#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/global.cuh"
#include "cuda/ptx/keep.cuh"
#include "cuda/ptx/ldmatrix.cuh"

namespace attile::cuda {

inline constexpr int kRowPadding = 16;

// Which row of a tile lies in row `slot` of shared memory.
struct InOrder {
  static __host__ __device__ constexpr int row(int slot) { return slot; }
};

// Of keys: the four lanes of mma.sync that have a row of scores, two columns of each of four products, have eight keys side by side each.
struct Interleaved {
  static __host__ __device__ constexpr int row(int slot) { return (slot & ~31) | (slot & 6) << 2 | (slot >> 2 & 6) | (slot & 1); }
};

// `bytes` of a word at p, read by `granule` (4, 2 or 1) bytes at a time.
__device__ __forceinline__ uint32_t load_word(const char* p, int bytes, int granule) {
  if (bytes <= 0) return 0;
  if (granule >= 4) return *reinterpret_cast<const uint32_t*>(p);
  uint32_t x = 0;
  if (granule == 2) {
    x = *reinterpret_cast<const uint16_t*>(p);
    if (bytes > 2) x |= static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(p + 2)) << 16;
    return x;
  }
#pragma unroll 1
  for (int i = 0; i < 4 && i < bytes; ++i) x |= static_cast<uint32_t>(static_cast<uint8_t>(p[i])) << (8 * i);
  return x;
}

// A chunk of 16 bytes of shared memory from `from`, of which `bytes` exist. granule as below.
__device__ __forceinline__ void load_chunk(uint32_t to, const char* from, int bytes, int granule) {
  if (granule == 16) {
    ptx::cp_async_16(to, from, bytes);
  } else if (granule >= 4) {
#pragma unroll
    for (int i = 0; i < 16; i += 4) ptx::cp_async_4(to + i, from + i, min(max(bytes - i, 0), 4));
  } else {
    uint4 x;
    x.x = load_word(from, bytes, granule);
    x.y = load_word(from + 4, bytes - 4, granule);
    x.z = load_word(from + 8, bytes - 8, granule);
    x.w = load_word(from + 12, bytes - 12, granule);
    ptx::store_shared(to, x);
  }
}

// kRows rows of kBytes. address(row): where a row begins, null when it does not exist; `valid` of its bytes exist. granule: what
// every address is a multiple of, at most 16. 16 and 4 are asynchronous.
template <int kRows, int kBytes, int kThreads, class Address>
__device__ __forceinline__ void load_rows(uint32_t shared, int granule, int valid, Address address) {
  constexpr int kChunks = kBytes / 16, kCount = kRows * kChunks;
  static_assert(kBytes % 16 == 0);
#pragma unroll 1
  for (int chunk = threadIdx.x; chunk < kCount; chunk += kThreads) {
    const int row = chunk / kChunks, column = chunk % kChunks * 16;
    const char* from = address(row);
    const int bytes = from ? min(max(valid - column, 0), 16) : 0;
    load_chunk(shared + row * (kBytes + kRowPadding) + column, from + column, bytes, granule);
  }
}

// The same of rows that all exist, `stride` apart from `first` on, at multiples of 16 bytes.
template <int kRows, int kBytes, int kThreads>
__device__ __forceinline__ void load_whole_rows(uint32_t shared, const char* first, int64_t stride, int valid) {
  constexpr int kChunks = kBytes / 16, kCount = kRows * kChunks;
  const int thread = threadIdx.x;
  if constexpr (kThreads % kChunks == 0) {  // a thread's chunks are below each other
    constexpr int kStep = kThreads / kChunks;
    static_assert(kRows % kStep == 0);
    const int row = thread / kChunks, column = thread % kChunks * 16, bytes = min(max(valid - column, 0), 16);
    const char* from = first + row * stride + column;
    const uint32_t to = shared + row * (kBytes + kRowPadding) + column;
#pragma unroll
    for (int i = 0; i < kRows / kStep; ++i) {
      ptx::cp_async_16(to + i * kStep * (kBytes + kRowPadding), from, bytes);
      from += kStep * stride;
    }
  } else {
#pragma unroll
    for (int c = 0; c < (kCount + kThreads - 1) / kThreads; ++c) {
      const int chunk = c * kThreads + thread, row = chunk / kChunks, column = chunk % kChunks * 16;
      if (kCount % kThreads != 0 && chunk >= kCount) break;
      ptx::cp_async_16(shared + row * (kBytes + kRowPadding) + column, first + row * stride + column, min(max(valid - column, 0), 16));
    }
  }
}

// What a thread copies of tiles of kRows whole rows, one tile below the other, at multiples of 16 bytes: its place is worked out once.
template <int kRows, int kBytes, int kThreads, class Order = InOrder>
struct RowCopies {
  static constexpr int kChunks = kBytes / 16, kStep = kThreads / kChunks, kStride = kBytes + kRowPadding;
  static constexpr bool kEven = kThreads % kChunks == 0 && kRows % kStep == 0;  // a thread's chunks are below each other

  const char* from;  // the thread's first chunk of the next tile
  int32_t stride, bytes;
  uint32_t to;

  // first: of the first tile. valid: bytes of a row.
  __device__ __forceinline__ RowCopies(const char* first, int64_t row_bytes, int valid) : stride(static_cast<int32_t>(row_bytes)) {
    const int row = threadIdx.x / kChunks, column = threadIdx.x % kChunks * 16;
    from = first + Order::row(row) * row_bytes + column;
    bytes = min(max(valid - column, 0), 16);
    to = row * kStride + column;
    ptx::keep(bytes), ptx::keep(to);
  }
  // Whether rows that begin at multiples of `granule` can be copied so.
  static __device__ __forceinline__ bool takes(int granule, int64_t row_bytes) {
    return granule == 16 && row_bytes == static_cast<int32_t>(row_bytes);
  }
  __device__ __forceinline__ void load(uint32_t shared) const {
#pragma unroll
    for (int i = 0; i < kRows / kStep; ++i)
      ptx::cp_async_16(shared + to + i * kStep * kStride, i == 0 ? from : ptx::address_of(from, stride, Order::row(i * kStep)), bytes);
  }
  __device__ __forceinline__ void next() { from = ptx::address_of(from, stride, kRows); }
};

}  // namespace attile::cuda
