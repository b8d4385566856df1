// Forward attention of one unit: flash attention with lanes as query rows.
//
//   for tiles of block_k keys:  copy K, V to scratch
//     for panels of rows:  S^T = K Q^T;  adjust;  P^T = softmax;  O^T = alpha O^T + V^T P^T
//
// A panel meets only the keys of the tile between the first and the last that one of its rows sees, so a causal diagonal wastes
// less than a panel by kBlockStep keys. Cost: 4 rows keys (head_dim + head_dim_v) / 2 operations in the products, about 15
// instructions a vector of scores in the softmax; at block_q 512, block_k 144, head_dim 128 the scratch is 0.8 MB, in L2. What the next
// panel reads of Q, bias and mask, and writes of out, is asked for during the products, and the rows of the next tile where L2 has room.
#pragma once

#include "cpu/forward/ahead.hpp"
#include "cpu/forward/pack.hpp"
#include "cpu/forward/product.hpp"
#include "cpu/forward/rows.hpp"
#include "cpu/forward/scores.hpp"
#include "cpu/forward/softmax.hpp"
#include "cpu/forward/state.hpp"

namespace attile::ATTILE_ISA {

// bfloat16 pairs travel as float32: two neighbouring elements of a row are one.
inline constexpr int kPairSize = kBf16Pairs ? 2 : 1;

inline int64_t packed_dim(const Unit& u) { return u.head_dim / kPairSize; }
inline DType packed_dtype(const Unit& u) { return kBf16Pairs ? DType::f32 : u.dtype; }

template <class T, int N>
inline void attend_panel(const Unit& u, int64_t panel, int64_t tile_begin, int64_t tile_end, Ahead& ahead) {
  const QueryRow* rows = u.rows + panel * kPanel<T>;
  const PanelKeys keys = panel_keys(rows, N * kLanes<T>);
  int64_t begin = keys.begin > tile_begin ? keys.begin : tile_begin;
  const int64_t end = keys.end < tile_end ? keys.end : tile_end;
  if (begin >= end) return;
  if (kBf16Pairs) begin -= (begin - tile_begin) % 2;
  const bool full = keys.every_begin <= begin && keys.every_end >= end;

  const int64_t first = begin - tile_begin, count = end - begin;
  T* s = static_cast<T*>(u.scratch.scores);
  const T* q = static_cast<const T*>(u.scratch.q) + panel * kPanel<T> * packed_dim(u);
  const T* k = static_cast<const T*>(u.scratch.k) + first * kChunk;
  scores_product<T, N>(k, u.k_rows * kChunk, round_up(count, kBlockStep), q, packed_dim(u), s, ahead);
  adjust_scores<T, N>(u, rows, begin, count, first, full, s);

  const PanelState<T> state = panel_state<T>(u, u.state, panel);
  const T c = scores_are_natural(u) ? kLog2E<T> : static_cast<T>(u.softmax_scale * kLog2E<double>);
  Vec<T> alpha[N];
  softmax<T, N>(s, count, c, state.max, state.sum, alpha);
  if (u.dropout) apply_dropout<T, N>(u, rows, begin, count, s);

  if constexpr (kBf16Pairs) pair_probabilities<T, N>(s, count);
  const T* v = static_cast<const T*>(u.scratch.v) + first / kPairSize * u.v_row;
  values_product<T, N>(v, u.v_row, round_up(u.head_dim_v, kBlockStep), s, (count + kPairSize - 1) / kPairSize, alpha, state.out, ahead);
}

// Q of `count` rows from `first` on, when a panel meets its first tile.
template <class T>
inline void pack_panel(const Unit& u, int64_t first, int64_t count) {
  T* q = static_cast<T*>(u.scratch.q) + first * packed_dim(u);
  for (int64_t r = 0; r < count; r += kLanes<T>) pack_queries<T>(u.rows + first + r, packed_dtype(u), packed_dim(u), q + r);
}

template <class T>
inline void pack_tile(const Unit& u, int64_t begin, int64_t end) {
  const int64_t keys = end - begin;
  // A panel may begin at any key of the tile and computes a multiple of kBlockStep: hence the zeros behind the last key.
  const int64_t padded = keys + kBlockStep - 1;
  T *k = static_cast<T*>(u.scratch.k), *v = static_cast<T*>(u.scratch.v);
  with_rows(u, begin, [&](auto k_row, auto v_row) {
    pack_keys<T>(k_row, packed_dtype(u), keys, padded, packed_dim(u), u.k_rows, k);
    if constexpr (kBf16Pairs) {
      pack_value_pairs(v_row, keys, u.head_dim_v, u.v_row, v);
    } else {
      pack_values<T>(v_row, u.dtype, keys, u.head_dim_v, u.v_row, v);
    }
  });
  read_key_ids(u, begin, keys);
}

// How often the products of a panel with `keys` keys call what runs between.
inline int64_t calls_of_panel(const Unit& u, int64_t keys) {
  return (keys / kBlockRows * packed_dim(u) + u.head_dim_v / kBlockRows * (keys / kPairSize)) / kChunk;
}

template <class T>
inline int64_t panels_that_see(const Unit& u, int64_t panels, int64_t begin, int64_t end) {
  int64_t count = 0;
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t first = panel * kPanel<T>, last = first + kPanel<T> < u.count ? first + kPanel<T> - 1 : u.count - 1;
    count += u.rows[first].key_begin < end && u.rows[last].key_end > begin;
  }
  return count;
}

// What a panel and keys [begin, end) read becomes what is asked for next, but no bias or mask whose elements lie further apart than lines.
template <class T>
inline void look_ahead(const Unit& u, int64_t panel, int64_t begin, int64_t end, int64_t calls, Ahead& ahead) {
  const QueryRow* rows = u.rows + panel * kPanel<T>;
  const int64_t left = u.count - panel * kPanel<T>, count = left < kPanel<T> ? left : kPanel<T>, keys = end - begin;
  const int64_t element = element_bytes(u.dtype);
  ahead.begin_panel();
  if (u.bias_dtype != DType::none && u.bias_stride <= kLine)
    ahead.add({rows->bias, count, begin * u.bias_stride, keys * u.bias_stride, calls});
  if (u.mask_bytes != 0 && u.mask_stride <= kLine) ahead.add({rows->mask, count, begin * u.mask_stride, keys * u.mask_stride, calls});
  if (begin == u.key_begin) ahead.add({rows->q, count, 0, u.head_dim * element, calls});
  if (end == u.key_end) ahead.add({rows->out, count, 0, u.head_dim_v * element, calls});
}

template <class T>
void attend(const Unit& u, bool finish) {
  const int64_t padded_rows = round_up(u.count, kLanes<T>), panels = round_up(padded_rows, kPanel<T>) / kPanel<T>;
  begin_state<T>(u, padded_rows);
  for (int64_t begin = u.key_begin; begin < u.key_end; begin += u.block_k) {
    const int64_t end = begin + u.block_k < u.key_end ? begin + u.block_k : u.key_end;
    if (u.maker.make) u.maker.make(u, begin, end);
    pack_tile<T>(u, begin, end);
    const int64_t calls = calls_of_panel(u, end - begin), next_end = end + u.block_k < u.key_end ? end + u.block_k : u.key_end;
    Ahead ahead;
    if (u.keys_ahead) ahead.keys = {u, end, next_end, calls * panels_that_see<T>(u, panels, begin, end)};
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t first = panel * kPanel<T>, rows = padded_rows - first < kPanel<T> ? padded_rows - first : kPanel<T>;
      if (begin == u.key_begin) pack_panel<T>(u, first, rows);
      if (panel + 1 < panels) {
        look_ahead<T>(u, panel + 1, begin, end, calls, ahead);
      } else if (end < next_end) {
        look_ahead<T>(u, 0, end, next_end, calls, ahead);
      }
      if (rows == kPanel<T>) {
        attend_panel<T, kPanelVectors>(u, panel, begin, end, ahead);
      } else {
        attend_panel<T, 1>(u, panel, begin, end, ahead);
      }
    }
  }
  if (finish) write_rows<T>(u, u.state);
}

extern const ForwardIsa kForward;
#if ATTILE_ISA_BF16_PAIRS
const ForwardIsa kForward = {kVectorBytes, kBlockStep, {attend<float>, nullptr}, {join<float>, nullptr}};
#else
const ForwardIsa kForward = {kVectorBytes, kBlockStep, {attend<float>, attend<double>}, {join<float>, join<double>}};
#endif

}  // namespace attile::ATTILE_ISA
