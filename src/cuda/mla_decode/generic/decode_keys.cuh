// Keys of a sequence, from the cache to the ring of tiles in shared memory.
#pragma once

#include <type_traits>

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

// The two float8_e4m3 in the lower half of x. The format's bits are those of a float32 of a smaller range, which one multiplication widens;
// it has one NaN and no infinity.
template <class Element>
__device__ __forceinline__ uint32_t widen_two(uint32_t x) {
  float wide[2];
#pragma unroll
  for (int i = 0; i < 2; ++i, x >>= 8) {
    const uint32_t magnitude = x & 0x7f;
    wide[i] = magnitude == 0x7f ? __uint_as_float(0x7fc00000) : __uint_as_float(magnitude << 20) * 0x1p120f;
    wide[i] = x & 0x80 ? -wide[i] : wide[i];
  }
  return Element::pack(wide[0], wide[1]);
}

// A row of `elements` float8_e4m3, 16 at a time, as 16-bit elements; zeros follow up to `chunks` of 16 bytes. Several are asked for before the
// first is used.
template <class Element, int kLanes>
__device__ __forceinline__ void load_row8(uint32_t to, const char* from, int lane, int chunks, int elements, int granule) {
  constexpr int kAhead = 4;
  for (int first = lane; first < chunks / 2; first += kAhead * kLanes) {
    uint32_t word[kAhead][4];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int at = 16 * (first + i * kLanes);
      const bool exists = from && at < elements;
      if (exists && granule == 16) {
        const uint4 x = *reinterpret_cast<const uint4*>(from + at);
        word[i][0] = x.x, word[i][1] = x.y, word[i][2] = x.z, word[i][3] = x.w;
      } else {
#pragma unroll
        for (int n = 0; n < 4; ++n) word[i][n] = exists ? load_word(from + at + 4 * n, 4, granule) : 0;
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int at = first + i * kLanes;
      if (at >= chunks / 2) break;
#pragma unroll
      for (int h = 0; h < 2; ++h)
        ptx::store_shared(to + 32 * at + 16 * h, uint4{widen_two<Element>(word[i][2 * h]), widen_two<Element>(word[i][2 * h] >> 16),
                                                       widen_two<Element>(word[i][2 * h + 1]), widen_two<Element>(word[i][2 * h + 1] >> 16)});
    }
  }
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
    bool widened = false;
    if constexpr (std::is_same_v<Element, Bf16>) {
      widened = p.latent8;
      if (widened) load_row8<Element, Traits::kLoadLanes>(to, latent, lane, l.latent_bytes / 16, p.head_dim_v, p.k.granule);
    }
    if (!widened) load_row<Traits::kLoadLanes>(to, latent, lane, l.latent_bytes / 16, p.head_dim_v * Element::kBytes, p.k.granule);
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
