// Which part of the problem a block has. A tile is kTileM rows of one key head in one sequence; row r is query position r / group
// of the head r % group of the group, so that grouped heads share each key and value that is read.
//
// Lengths are on the device: the grid is an upper bound from shapes. Packed sequences are laid over the tiles in order; the
// blocks that are left over clear the rows past the last sequence.
#pragma once

#include "cuda/generic/forward_params.hpp"
#include "cuda/tile/element.cuh"

namespace attile::cuda::generic {

// Key k of query i is in the band if i + low <= k <= i + high and k < seqlen_k.
struct Band {
  int seqlen_k, low, high;

  __device__ int begin(int i) const { return max(0, i + low); }
  __device__ int end(int i) const { return min(seqlen_k, i + high + 1); }
};

struct Work {
  int sequence, head_k, column_part, split;
  int unit;              // number of the block, without split and column part
  int q_batch, k_batch;  // indices of the batch axis
  int q_first, k_first;  // first rows of the sequence
  int first, count;      // rows of the tile: `count` attend
  int stored;            // and `stored` exist, count <= stored
  int seqlen_q;
  Band band;
  int clear, clear_step;  // clear >= 0: this block has no tile, but clears rows clear, clear + clear_step, ... < clear_end
  int clear_end;
};

__device__ __forceinline__ int64_t read_index(const Indices& x, int64_t i) {
  const char* at = x.data + i * x.stride;
  return x.wide ? static_cast<int64_t>(load_unaligned<uint64_t>(at)) : static_cast<int32_t>(load_unaligned<uint32_t>(at));
}

__device__ __forceinline__ int clamp_to(int64_t x, int low, int high) { return static_cast<int>(x < low ? low : x > high ? high : x); }

// Lengths that break their contract read nothing out of bounds.
__device__ __forceinline__ void sequence_rows(const Lengths& s, int b, int& first, int& length) {
  first = 0;
  length = s.rows;
  if (s.cu.data) {
    const int64_t begin = read_index(s.cu, b), end = read_index(s.cu, b + 1);
    if (s.packed) first = clamp_to(begin, 0, s.rows);
    length = clamp_to(end - begin, 0, min(s.rows - first, s.most));
  } else if (s.lens.data) {
    length = clamp_to(read_index(s.lens, b), 0, s.rows);
  }
}

template <int kTileM>
__device__ __forceinline__ Work find_work(const ForwardParams& p, int block) {
  Work w;
  const int lane = threadIdx.x % 32;
  w.split = block % p.splits;
  block /= p.splits;
  w.column_part = block % p.column_parts;
  block /= p.column_parts;
  w.unit = block;
  w.clear = -1;
  const int batch = p.q_lengths.packed ? 1 : p.batch;
  int tile, b;
  if (p.batch_first) {
    b = block % batch;
    block /= batch;
    tile = block % p.tiles;
    w.head_k = block / p.tiles;
  } else {
    tile = block % p.tiles;
    block /= p.tiles;
    w.head_k = block % p.heads_k;
    b = block / p.heads_k;
  }

  if (p.q_lengths.packed) {
    int before = 0;
    b = -1;
    for (int from = 0; from < p.batch; from += 32) {
      int first, length, count = 0;
      if (from + lane < p.batch) {
        sequence_rows(p.q_lengths, from + lane, first, length);
        count = (length * p.group + kTileM - 1) / kTileM;
      }
      int sum = count;
#pragma unroll
      for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(~0u, sum, d);
        if (lane >= d) sum += other;
      }
      const unsigned has = __ballot_sync(~0u, before + sum > tile);
      if (has) {
        const int source = __ffs(has) - 1;
        const int end = before + __shfl_sync(~0u, sum, source);
        b = from + source;
        tile = end - 1 - tile;  // the longest of a causal sequence first
        break;
      }
      before += __shfl_sync(~0u, sum, 31);
    }
    if (b < 0) {  // tile - before of the tiles left over
      w.sequence = w.q_batch = 0;
      w.clear = tile - before;
      w.clear_step = p.tiles - before;
      const int64_t end = p.batch > 0 ? read_index(p.q_lengths.cu, p.batch) : 0;
      w.clear += clamp_to(end, 0, p.q_lengths.rows);
      w.clear_end = p.q_lengths.rows;
      return w;
    }
  } else {
    tile = p.tiles - 1 - tile;
  }

  w.sequence = b;
  int seqlen_k;
  sequence_rows(p.q_lengths, b, w.q_first, w.seqlen_q);
  sequence_rows(p.k_lengths, b, w.k_first, seqlen_k);
  w.q_batch = p.q_lengths.packed ? 0 : b;
  w.k_batch = p.k_lengths.packed ? 0 : b;
  w.first = tile * kTileM;
  w.count = min(kTileM, max(0, w.seqlen_q * p.group - w.first));
  w.stored = p.q_lengths.packed ? w.count : min(kTileM, max(0, p.q_lengths.rows * p.group - w.first));
  const int shift = p.bottom_right ? seqlen_k - w.seqlen_q : 0;
  w.band = {seqlen_k, shift - p.left, shift + p.right};
  return w;
}

// Keys of the block's split, in whole tiles of kTileN but for the end of the range.
struct KeyRange {
  int begin, end;
};

template <int kTileN>
__device__ __forceinline__ KeyRange find_keys(const ForwardParams& p, const Work& w) {
  if (w.count == 0) return {0, 0};
  const int i0 = w.first / p.group, i1 = (w.first + w.count - 1) / p.group;
  KeyRange keys{w.band.begin(i0) & ~7, w.band.end(i1)};
  if (keys.begin >= keys.end) return {0, 0};
  if (p.splits > 1) {
    const int tiles = (keys.end - keys.begin + kTileN - 1) / kTileN, share = (tiles + p.splits - 1) / p.splits * kTileN;
    keys.begin = min(keys.end, keys.begin + w.split * share);
    keys.end = min(keys.end, keys.begin + share);
  }
  return keys;
}

// Where keys or values lie. Rows of pages are looked up one by one, others are `row` apart.
template <bool kPages>
struct KeyRows {
  const char* data;  // of the sequence's first row, or of the first page; of the head
  int64_t row, page;
  int end;  // rows past it do not exist
  const ForwardParams* p;
  const char* table;  // null: no pages

  __device__ __forceinline__ const char* at(int j) const {
    if (j >= end) return nullptr;
    if (!kPages || !table) return data + j * row;
    const int slot = j / p->page_size;
    const int64_t number = read_index({table, p->pages.stride, p->pages.wide}, slot);
    if (number < 0 || number >= p->page_count) return nullptr;
    return data + number * page + (j - slot * p->page_size) * row;
  }
};

template <bool kPages>
__device__ __forceinline__ KeyRows<kPages> key_rows(const ForwardParams& p, const Work& w, const Tensor& t) {
  KeyRows<kPages> r;
  r.row = t.row;
  r.page = t.batch;
  r.end = w.band.seqlen_k;
  r.p = &p;
  r.table = nullptr;
  r.data = t.data + w.head_k * t.head;
  if (kPages && p.pages.data) {
    r.table = p.pages.data + w.sequence * p.pages_batch;
  } else {
    r.data += w.k_batch * t.batch + w.k_first * t.row;
  }
  return r;
}

}  // namespace attile::cuda::generic
