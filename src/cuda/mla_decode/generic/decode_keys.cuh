// Keys of a sequence, from the cache to the ring of tiles in shared memory.
#pragma once

#include "cuda/generic/schedule.cuh"
#include "cuda/mla_decode/generic/decode_traits.hpp"
#include "cuda/tile/rows.cuh"

namespace attile::cuda::latent {

using generic::read_index;
using generic::Work;

// `chunks` of 16 bytes of one row by every kLanes-th thread, `valid` bytes of which exist. from: null, zeros.
template <int kLanes>
__device__ __forceinline__ void load_row(uint32_t to, const char* from, int lane, int chunks, int valid, int granule) {
  for (int c = lane; c < chunks; c += kLanes) load_chunk(to + 16 * c, from + 16 * c, from ? min(max(valid - 16 * c, 0), 16) : 0, granule);
}

// kLoadLanes neighbouring threads have one row of every tile.
template <class Traits>
struct Keys {
  using Element = typename Traits::Element;

  const DecodeParams& p;
  const char *ckv, *kpe;  // of the sequence's first row; with pages, of page 0
  const char* table;      // null: no pages
  int64_t entries;        // of the table from there on
  int end;                // keys from here on do not exist
  int row, lane;

  __device__ __forceinline__ Keys(const DecodeParams& params, const Work& w) : p(params), ckv(p.k.data), kpe(p.kpe.data), table(nullptr) {
    row = threadIdx.x / Traits::kLoadLanes;
    lane = threadIdx.x % Traits::kLoadLanes;
    end = w.band.seqlen_k;
    entries = 0;
    if (p.pages.data) {
      const int64_t first = p.page_begin.data ? read_index(p.page_begin, w.sequence) : 0;
      entries = first < 0 ? 0 : p.page_entries - first;
      table = p.pages.data + w.sequence * p.pages_batch + first * p.pages.stride;
    } else {
      ckv += w.k_batch * p.k.batch;
      kpe += w.k_batch * p.kpe.batch;
    }
  }

  // The page of the thread's row in the tile from `key` on; -1: there is none. Asked for a tile ahead, since the answer takes a while.
  __device__ __forceinline__ int page(int key) const {
    key += row;
    if (key >= end) return -1;
    if (!table) return 0;
    const int slot = key / p.page_size;
    if (slot >= entries) return -1;
    const int64_t number = read_index({table, p.pages.stride, p.pages.wide}, slot);
    return number >= 0 && number < p.page_count ? static_cast<int>(number) : -1;
  }

  // The tile from `key` on into `stage` of the ring.
  __device__ __forceinline__ void load(int key, int page, char* shared, uint32_t base, int stage) const {
    const Layout& l = p.layout;
    key += row;
    const int64_t at = table ? key % p.page_size : key;
    const char* latent = page < 0 ? nullptr : ckv + page * p.k.batch + at * p.k.row;
    const char* rope = page < 0 || !p.rope ? nullptr : kpe + page * p.kpe.batch + at * p.kpe.row;
    const uint32_t to = base + l.ring + stage * l.tile + row * l.k_stride;
    load_row<Traits::kLoadLanes>(to, latent, lane, l.latent_bytes / 16, p.head_dim_v * Element::kBytes, p.k.granule);
    if (!p.head_rope) {
      load_row<Traits::kLoadLanes>(to + l.latent_bytes, rope, lane, l.rope_bytes / 16, p.rope * Element::kBytes, p.kpe.granule);
    } else if (lane == 0) {
      reinterpret_cast<const char**>(shared + l.places)[stage * Traits::kTileN + row] = rope;
    }
  }
};

// All rows of queries of the block; rows that do not exist become zero.
template <class Traits>
__device__ __forceinline__ void load_queries(const DecodeParams& p, const Work& w, uint32_t base) {
  using Element = typename Traits::Element;
  constexpr int kLanes = Traits::kRowLanes;
  const Layout& l = p.layout;
  const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const char *nope = nullptr, *rope = nullptr;
  if (row < w.count) {
    const int i = (w.first + row) / p.group, h = w.first + row - i * p.group;
    nope = p.q.data + w.q_batch * p.q.batch + (w.q_first + i) * p.q.row + h * p.q.head;
    if (p.rope) rope = p.q_pe.data + w.q_batch * p.q_pe.batch + (w.q_first + i) * p.q_pe.row + h * p.q_pe.head;
  }
  const uint32_t to = base + row * l.q_stride;
  load_row<kLanes>(to, nope, lane, l.latent_bytes / 16, p.head_dim_v * Element::kBytes, p.q.granule);
  load_row<kLanes>(to + l.latent_bytes, rope, lane, (l.q_stride - 16 - l.latent_bytes) / 16, p.rope * Element::kBytes, p.q_pe.granule);
}

}  // namespace attile::cuda::latent
