// MLA decoding of one unit by vectors: lanes are rows, tokens times heads, so that one tile of the cache serves all of them.
//
//   for tiles of block_k keys:  copy [ckv, kpe] to scratch, unless it can be used as it lies; values are its first L columns
//     for panels of rows:  S^T = K Q^T  (+ rope keys of the heads);  adjust;  P^T = softmax;  O^T = alpha O^T + V^T P^T
//
// The adjustments and the softmax are those of forward/. Q^T is [L, R] as one matrix, L padded with zeros to whole chunks. Pairs of bfloat16
// lie along the sum, which is dims for scores and keys for values, so that values are a second copy there.
// Where each head has its own rope key, lanes meet different keys: a vector of them is transposed in registers for each key, R
// multiply-adds a key and vector beside the L + L of the products.
// Cost: rows keys (2 L + R) multiply-adds; each byte of the cache is read once.
#pragma once

#include "cpu/forward/pack.hpp"
#include "cpu/forward/scores.hpp"
#include "cpu/forward/softmax.hpp"
#include "cpu/forward/state.hpp"
#include "cpu/mla_decode/head_rope.hpp"
#include "cpu/mla_decode/join.hpp"
#include "cpu/mla_decode/prefetch.hpp"
#include "cpu/mla_decode/products.hpp"

namespace attile::ATTILE_ISA {

// More streams than these cost jumps between multiply-adds.
using VectorPrefetcher = Prefetcher<2>;

// Elements of T that hold one packed element: bfloat16 pairs travel as float32.
inline constexpr int kPair = kBf16Pairs ? 2 : 1;

template <class T>
struct DecodeScratch {
  int64_t latent_dim, packed_dim;  // of Q^T and K: the latent with its padding, and with the rope part
  int64_t k_rows, v_row;
  size_t q, q_rope, k, v, scores, keys, runs, bytes;  // offsets

  explicit DecodeScratch(const MlaDecodeShape& s) {
    const bool shared = s.rope_heads == 1;
    latent_dim = round_up(s.latent / kPair, kChunk);
    packed_dim = latent_dim + (shared ? s.rope / kPair : 0);
    k_rows = s.block_k + kBlockStep;
    v_row = round_up(s.latent, kChunk) + kChunk;
    bytes = 0;
    q = take(s.rows * packed_dim * sizeof(T));
    q_rope = take(shared ? 0 : s.rows * s.rope * sizeof(T));
    k = take(round_up(packed_dim, kChunk) * k_rows * sizeof(T));
    v = take(kBf16Pairs ? s.block_k / 2 * v_row * sizeof(T) : 0);
    scores = take(round_up(s.block_k, kBlockStep) * kPanel<T> * sizeof(T));
    keys = take(2 * s.block_k * sizeof(KeyRow));
    runs = take(2 * s.block_k * sizeof(PrefetchRun));
  }

 private:
  size_t take(size_t size) {
    const size_t begin = bytes;
    bytes += (size + 63) / 64 * 64;
    return begin;
  }
};

template <class T>
struct DecodeTile {
  T *q, *q_rope, *k, *v, *scores;
  KeyRow* keys;

  DecodeTile(const DecodeScratch<T>& layout, char* scratch)
      : q(at(scratch, layout.q)),
        q_rope(at(scratch, layout.q_rope)),
        k(at(scratch, layout.k)),
        v(at(scratch, layout.v)),
        scores(at(scratch, layout.scores)),
        keys(reinterpret_cast<KeyRow*>(scratch + layout.keys)) {}

 private:
  static T* at(char* scratch, size_t offset) { return reinterpret_cast<T*>(scratch + offset); }
};

// core/dtype.hpp's table would be data of every level.
inline int64_t input_bytes(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

inline DType pair_dtype(const Unit& u) { return kBf16Pairs ? DType::f32 : u.dtype; }

template <class T>
inline void pack_decode_queries(const MlaDecodeUnit& m, const DecodeScratch<T>& layout, int64_t padded_rows, const DecodeTile<T>& tile) {
  const Unit& u = m.base;
  for (int64_t r = 0; r < padded_rows; r += kLanes<T>) {
    const int64_t panel = r / kPanel<T> * kPanel<T>;
    T* q = tile.q + panel * layout.packed_dim + r % kPanel<T>;
    for (int64_t d = m.shape.latent / kPair; d < layout.latent_dim; ++d) store(q + d * kPanel<T>, Vec<T>{});
    pack_rows<T>([&](int l) { return u.rows[r + l].q; }, pair_dtype(u), m.shape.latent / kPair, q);
    if (m.shape.rope == 0) continue;
    const auto rope_at = [&](int l) { return m.rope[r + l].q; };
    if (m.shape.rope_heads == 1) {
      pack_rows<T>(rope_at, pair_dtype(u), m.shape.rope / kPair, q + layout.latent_dim * kPanel<T>);
    } else {
      pack_rows<T>(rope_at, u.dtype, m.shape.rope, tile.q_rope + panel * m.shape.rope + r % kPanel<T>);
    }
  }
}

template <class T>
inline void pack_decode_tile(const MlaDecodeUnit& m, const DecodeScratch<T>& layout, const DecodeTile<T>& tile, int64_t keys) {
  const Unit& u = m.base;
  // A panel may begin at any key of the tile and computes a multiple of kBlockStep: hence the zeros behind the last key.
  const int64_t padded = keys + kBlockStep - 1;
  const auto latent_at = [&](int64_t j) { return tile.keys[j].ckv; };
  pack_keys<T>(latent_at, pair_dtype(u), keys, padded, m.shape.latent / kPair, layout.k_rows, tile.k);
  if (m.shape.rope > 0 && m.shape.rope_heads == 1)
    pack_keys<T>([&](int64_t j) { return tile.keys[j].kpe; }, pair_dtype(u), keys, padded, m.shape.rope / kPair, layout.k_rows,
                 tile.k + layout.latent_dim * layout.k_rows);
  if constexpr (kBf16Pairs) pack_value_pairs(latent_at, keys, m.shape.latent, layout.v_row, tile.v);
}

// Whether a tile can be used as it lies: the accumulator's type, whole chunks, one stride, and no keys to be padded.
template <class T>
inline bool find_spaced(const MlaDecodeUnit& m, const KeyRow* rows, int64_t keys, SpacedKeys<T>& k) {
  const bool shared = m.shape.rope_heads == 1;
  if (kBf16Pairs || input_bytes(m.base.dtype) != sizeof(T) || m.shape.latent % kChunk != 0 || keys % kBlockStep != 0) return false;
  const int64_t ckv = rows[1].ckv - rows[0].ckv, kpe = rows[1].kpe - rows[0].kpe, size = sizeof(T);
  bool even = (ckv % size == 0) & (kpe % size == 0);
  for (int64_t j = 1; j < keys; ++j) even &= (rows[j].ckv - rows[j - 1].ckv == ckv) & (rows[j].kpe - rows[j - 1].kpe == kpe);
  const auto aligned = [](const char* p) { return reinterpret_cast<uintptr_t>(p) % alignof(T) == 0; };
  if (!even || !aligned(rows[0].ckv) || !aligned(rows[0].kpe)) return false;
  k = {reinterpret_cast<const T*>(rows[0].ckv),
       reinterpret_cast<const T*>(rows[0].kpe),
       ckv / size,
       kpe / size,
       m.shape.latent,
       shared ? m.shape.rope : 0};
  return true;
}

template <class T, int N>
inline void decode_panel(const MlaDecodeUnit& m, const DecodeScratch<T>& layout, const DecodeTile<T>& tile, int64_t panel,
                         int64_t tile_begin, int64_t tile_end, const SpacedKeys<T>* spaced, VectorPrefetcher& prefetch) {
  const Unit& u = m.base;
  const auto between = [&](int64_t cost) __attribute__((always_inline)) { prefetch.advance(cost); };
  const QueryRow* rows = u.rows + panel * kPanel<T>;
  const PanelKeys seen = panel_keys(rows, N * kLanes<T>);
  const int64_t end = seen.end < tile_end ? seen.end : tile_end, count = end - tile_begin;  // every row sees from key 0 on
  if (count <= 0) return;
  const bool full = seen.every_end >= end;

  const T* q = tile.q + panel * kPanel<T> * layout.packed_dim;
  if (spaced) {
    decode_spaced_scores<T, N>(*spaced, round_up(count, kBlockStep), q, tile.scores, between);
  } else {
    decode_scores<T, N>(tile.k, layout.k_rows * kChunk, round_up(count, kBlockStep), q, layout.packed_dim, tile.scores, between);
  }
  if (m.shape.rope_heads > 1)
    add_head_rope<T, N>(m, m.rope + panel * kPanel<T>, tile.q_rope + panel * kPanel<T> * m.shape.rope, tile.keys, count, tile.scores);
  adjust_scores<T, N>(u, rows, tile_begin, count, 0, full, tile.scores);

  const PanelState<T> state = panel_state<T>(u, u.state, panel);
  const T c = scores_are_natural(u) ? kLog2E<T> : static_cast<T>(u.softmax_scale * kLog2E<double>);
  Vec<T> alpha[N];
  softmax<T, N>(tile.scores, count, c, state.max, state.sum, alpha);
  const int64_t chunks = round_up(m.shape.latent, kChunk) / kChunk;
  if constexpr (kBf16Pairs) {
    pair_probabilities<T, N>(tile.scores, count);
    decode_values<T, N>(tile.v, kChunk, layout.v_row, chunks, tile.scores, (count + 1) / 2, alpha, state.out, between);
  } else if (spaced) {
    // With two vectors of rows a line that comes serves twice as many multiply-adds.
    constexpr int kAhead = N == 1 ? kRowsAhead : 0;
    decode_values<T, N, kAhead>(spaced->ckv, kChunk, spaced->ckv_stride, chunks, tile.scores, count, alpha, state.out, between);
  } else {
    decode_values<T, N>(tile.k, layout.k_rows * kChunk, kChunk, chunks, tile.scores, count, alpha, state.out, between);
  }
}

template <class T>
size_t decode_scratch_bytes(const MlaDecodeShape& shape) {
  return DecodeScratch<T>(shape).bytes;
}

// A tile of keys and values within a fifth of L2.
inline int64_t decode_block_k(const MlaDecodeShape& shape) {
  constexpr int64_t kLargest = 144, kStep = 24, kBytes = 232 << 10;
  const int64_t row = (shape.latent + shape.rope) * (shape.dtype == DType::f64 ? 8 : 4);
  const int64_t fitting = kBytes / row / kStep * kStep;
  return fitting < kStep ? kStep : fitting < kLargest ? fitting : kLargest;
}

template <class T>
void decode_attend(const MlaDecodeUnit& m, bool finish) {
  const Unit& u = m.base;
  const DecodeScratch<T> layout(m.shape);
  const DecodeTile<T> tile(layout, m.scratch);
  const int64_t padded_rows = round_up(u.count, kLanes<T>), panels = round_up(padded_rows, kPanel<T>) / kPanel<T>;
  pack_decode_queries<T>(m, layout, padded_rows, tile);
  // Columns of padding between the latent and the rope part: read by the product, never written.
  if (m.shape.latent / kPair % kChunk != 0) __builtin_memset(tile.k, 0, layout.latent_dim * layout.k_rows * sizeof(T));
  begin_state<T>(u, padded_rows);
  VectorPrefetcher prefetch(reinterpret_cast<PrefetchRun*>(m.scratch + layout.runs));
  const int64_t size = input_bytes(u.dtype), rope_bytes = m.shape.rope * m.shape.rope_heads * size;
  KeyRow* next = tile.keys + u.block_k;
  int64_t count = u.key_end - u.key_begin < u.block_k ? u.key_end - u.key_begin : u.block_k, after = 0;
  find_keys(m, u.key_begin, u.key_begin + count, next);
  for (int64_t begin = u.key_begin; begin < u.key_end; begin += count, count = after) {
    const int64_t end = begin + count;
    __builtin_memcpy(tile.keys, next, count * sizeof(KeyRow));
    after = find_next_keys(m, end, next);
    SpacedKeys<T> keys;
    const SpacedKeys<T>* spaced = find_spaced<T>(m, tile.keys, end - begin, keys) ? &keys : nullptr;
    if (!spaced) pack_decode_tile<T>(m, layout, tile, end - begin);
    // In vector multiply-adds.
    const int64_t cost = padded_rows / kLanes<T> * (end - begin) * (layout.packed_dim + m.shape.latent / kPair);
    prefetch.add_keys(m, next, after, m.shape.latent * size, rope_bytes);
    prefetch.start(cost);
    for (int64_t panel = 0; panel < panels; ++panel) {
      if (padded_rows - panel * kPanel<T> >= kPanel<T>) {
        decode_panel<T, kPanelVectors>(m, layout, tile, panel, begin, end, spaced, prefetch);
      } else {
        decode_panel<T, 1>(m, layout, tile, panel, begin, end, spaced, prefetch);
      }
    }
  }
  if (finish) write_rows<T>(u, u.state);
}

extern const MlaDecodeIsa kMlaDecode;
#if ATTILE_ISA_BF16_PAIRS
const MlaDecodeIsa kMlaDecode = {kVectorBytes,
                                 kBlockStep,
                                 decode_block_k,
                                 {decode_scratch_bytes<float>, nullptr},
                                 {decode_attend<float>, nullptr},
                                 {join_columns<float>, nullptr}};
#else
const MlaDecodeIsa kMlaDecode = {kVectorBytes,
                                 kBlockStep,
                                 decode_block_k,
                                 {decode_scratch_bytes<float>, decode_scratch_bytes<double>},
                                 {decode_attend<float>, decode_attend<double>},
                                 {join_columns<float>, join_columns<double>}};
#endif

}  // namespace attile::ATTILE_ISA
