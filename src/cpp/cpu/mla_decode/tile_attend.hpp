// MLA decoding of one unit on tiles, bfloat16. Rows are tokens times heads, in panels of 32.
//
//   for blocks of keys:
//     for panels:              S^T = K Q^T;  adjust;  P = softmax, rounded and transposed;  O = alpha O
//     for 32 columns of V:     interleave;  for panels:  O += P V
//
// Interleaved columns and P of a panel stay in L1; with 16 rows, 64 columns of 32 keys are made while the dots of the 32 before run.
// K is never copied: its rows are the A operand. Where each head has its own rope key, [ckv, kpe of every head] is one long row of K, and
// Q^T is zero where a row meets another head's key, so that only chunks of the panel's own heads are multiplied. A NaN in another
// head's key would leak through such a zero: scores that are NaN are computed again, head by head.
//
// Cost for a key and 16 rows, L + R = 576, L = 512: 34 dots of 16 rows by 16, 34 * 16 cycles for 16 keys; 16 interleaved vectors, loaded and
// stored; a tenth of that for the softmax. With 16 rows that is a third of what reading 1152 bytes from memory takes, so the lines of the
// next block, or of the next unit's first, are asked for all along; with 128 rows the dots are everything.
#pragma once

#include "cpu/amx/pack.hpp"
#include "cpu/forward/scores.hpp"
#include "cpu/forward/softmax.hpp"
#include "cpu/mla_decode/head_rope.hpp"
#include "cpu/mla_decode/tile_products.hpp"
#include "cpu/mla_decode/tile_scratch.hpp"
#include "cpu/mla_decode/tile_softmax.hpp"
#include "cpu/mla_decode/tile_state.hpp"

namespace attile::ATTILE_ISA {

class TileDecode {
 public:
  // `whole`: no other unit has keys of these rows.
  TileDecode(const MlaDecodeUnit& unit, bool whole)
      : m(unit),
        u(unit.base),
        layout(unit.shape),
        row_bytes(unit.shape),
        state(u.count, unit.shape.latent),
        padded_rows(round_up(u.count, kTileRows)),
        panels(state.panels()),
        whole_(whole),
        keys_of_block(round_up(u.block_k, kUnitKeys)),
        o_(whole ? at<float>(layout.o) : static_cast<float*>(u.state.out)),
        block_(unit, at<KeyGroup>(layout.groups), at<char>(layout.staged), at<char>(layout.zeros)),
        prefetch_(at<PrefetchRun>(layout.runs)) {
    __builtin_memset(at<char>(layout.zeros), 0, row_bytes.padded());
  }

  void begin() {
    first_count_ = u.key_end - u.key_begin < u.block_k ? u.key_end - u.key_begin : u.block_k;
    find_keys(m, u.key_begin, u.key_begin + first_count_, rows_at(0));
    if (!m.expected) {
      prefetch_.add_keys(m, rows_at(0), first_count_, row_bytes.ckv, row_bytes.kpe);
      prefetch_.start(1);
      prefetch_.advance(1);
    }
    for (int64_t panel = 0; panel < panels && !m.packed; ++panel) {
      const auto row_of = [&](int64_t l) { return panel * kTileLanes + l; };
      pack_query_tiles<1>([&](int64_t l) { return row_of(l) < padded_rows ? u.rows[row_of(l)].q : nullptr; }, m.shape.latent,
                          queries(panel));
      pack_rope(panel);
      if (!two_tiles(panel)) tighten(panel);
    }
    for (int64_t r = 0; r < padded_rows; ++r) {
      static_cast<float*>(u.state.max)[r] = static_cast<float>(u.rows[r].sink_max);
      static_cast<float*>(u.state.sum)[r] = static_cast<float>(u.rows[r].sink_sum);
    }
  }

  void attend() {
    int turn = 0;
    int64_t count = first_count_, after = 0;
    for (int64_t begin = u.key_begin; begin < u.key_end; begin += count, count = after) {
      const int64_t end = begin + count;
      KeyRow* rows = rows_at(turn);
      turn = 1 - turn;
      after = find_next_keys(m, end, rows_at(turn));
      prefetch_.add_keys(m, rows_at(turn), after, row_bytes.ckv, row_bytes.kpe);
      if (end == u.key_end) {
        const MlaDecodeUnit* next = m.next(m.path);
        next_part_ = next ? static_cast<char*>(next->base.state.out) : nullptr;
      }
      prefetch_.start(block_cost(count));
      block_.set(rows, end - begin);
      for (int64_t panel = 0; panel < panels; ++panel) {
        if (two_tiles(panel)) {
          weigh<2>(panel, rows, begin, end);
        } else {
          weigh<1>(panel, rows, begin, end);
        }
      }
      if (padded_rows > kTileRows) {
        values_of_panels(rows, end - begin);
      } else {
        values_of_tile(rows);
      }
      for (int64_t panel = 0; panel < panels; ++panel) begun_[panel] |= value_groups_[panel] > 0;
    }
    for (int64_t panel = 0; panel < panels; ++panel)
      if (!begun_[panel]) __builtin_memset(out(panel), 0, state.panel_bytes(panel));
  }

  void finish() const {
    if (whole_) write_block(u, out(0));
  }

 private:
  const MlaDecodeUnit& m;
  const Unit& u;
  const TileScratch layout;
  const RowBytes row_bytes;
  const TileState state;
  const int64_t padded_rows, panels;
  const bool whole_;
  const int64_t keys_of_block;
  float* const o_;             // of a part where join_tiles() reads it, else scratch
  char* next_part_ = nullptr;  // during the unit's last block
  KeyBlock block_;
  Prefetcher<8> prefetch_;
  static constexpr int64_t kMostPanels = 4096 / kTileLanes;
  int64_t first_count_ = 0;                 // keys of the first block
  int64_t value_groups_[kMostPanels] = {};  // of 32 keys that the panel sees of this block
  bool begun_[kMostPanels] = {};            // the panel's O is there; before, it counts as zero

  template <class T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(m.scratch + offset);
  }
  KeyRow* rows_at(int turn) const { return at<KeyRow>(layout.rows) + turn * keys_of_block; }
  bool two_tiles(int64_t panel) const { return state.halves(panel) == 2; }
  char* queries(int64_t panel) const { return at<char>(layout.q) + panel * (layout.latent_chunks + layout.rope_chunks) * kStepBytes; }
  int64_t& chunks_of_rope(int64_t panel) const { return at<int64_t>(layout.rope_counts)[panel]; }
  RopeChunk* rope_chunks(int64_t panel) const { return at<RopeChunk>(layout.rope) + panel * layout.rope_chunks; }
  float* rope_queries(int64_t panel) const { return at<float>(layout.q_rope) + panel * kTileLanes * m.shape.rope; }
  char* probabilities(int64_t panel) const { return at<char>(layout.p) + panel * (keys_of_block / kTileStep) * 2 * kTileBytes; }
  float* out(int64_t panel) const { return o_ + state.panel(panel); }
  // [32 columns][16 rows of the panel][half]
  static int64_t out_tile(int64_t block, int n, int64_t half, int n_count) { return ((block * n_count + n) * 2 + half) * kTileBytes / 4; }

  // Tiles of Q^T that have no neighbour, one after another.
  void tighten(int64_t panel) const {
    char* q = queries(panel);
    for (int64_t c = 1; c < layout.latent_chunks + chunks_of_rope(panel); ++c)
      __builtin_memcpy(q + c * kTileBytes, q + c * kStepBytes, kTileBytes);
  }

  void pack_rope(int64_t panel) {
    RopeChunk* chunks = rope_chunks(panel);
    char* to = queries(panel) + layout.latent_chunks * kStepBytes;
    const auto rope_row = [&](int64_t l) { return panel * kTileLanes + l < padded_rows ? m.rope[panel * kTileLanes + l].q : nullptr; };
    int64_t& count = chunks_of_rope(panel);
    count = 0;
    if (m.shape.rope == 0) return;
    if (m.shape.rope_heads == 1) {
      for (; count < row_bytes.kpe_padded / kChunkBytes; ++count) chunks[count] = {count * kChunkBytes, true, true};
      return pack_query_tiles<1>(rope_row, m.shape.rope, to);
    }
    for (int64_t first = 0; first < m.shape.rope * m.shape.rope_heads; first += kTileStep) {
      uint16_t rows[kTileLanes][kTileStep] = {};
      bool side[2] = {false, false};
      for (int64_t l = 0; l < kTileLanes && rope_row(l); ++l) {
        const int64_t begin = m.rope[panel * kTileLanes + l].head * m.shape.rope - first, end = begin + m.shape.rope;
        const int64_t from = begin < 0 ? 0 : begin, until = end < kTileStep ? end : kTileStep;
        if (from >= until) continue;
        __builtin_memcpy(rows[l] + from, rope_row(l) + (from - begin) * 2, (until - from) * 2);
        side[l / 16] = true;
      }
      if (!side[0] && !side[1]) continue;
      pack_query_tiles<1>([&](int64_t l) { return reinterpret_cast<const char*>(rows[l]); }, kTileStep, to + count * kStepBytes);
      chunks[count++] = {first * 2, side[0], side[1]};
    }
    for (int64_t l = 0; l < kTileLanes && rope_row(l); l += 16)
      pack_rows<float>([&](int64_t i) { return rope_row(l + i); }, DType::bf16, m.shape.rope, rope_queries(panel) + l);
  }

  // What prefetch_ will be told while a block is computed: steps of two dots, about.
  static constexpr int64_t kSoftmaxCost = 3;
  int64_t block_cost(int64_t keys) const {
    const int64_t steps = layout.latent_chunks + chunks_of_rope(0), units = round_up(keys, kUnitKeys) / kUnitKeys,
                  groups = round_up(keys, kTileStep) / kTileStep;
    const int64_t halves = padded_rows / kTileRows;  // of panels
    const int64_t values = halves > 1 ? halves * layout.value_tiles / 2 : 0;
    return halves * (units * steps * 2 + groups * kSoftmaxCost) + groups * (layout.value_tiles + values);
  }

  // P of a panel, and O ready for it.
  template <int N>
  void weigh(int64_t panel, const KeyRow* rows, int64_t block_begin, int64_t block_end) {
    const QueryRow* queries_of = u.rows + panel * kTileLanes;
    const PanelKeys seen = panel_keys(queries_of, N * 16);
    const int64_t end = seen.end < block_end ? seen.end : block_end, count = end - block_begin;  // every row sees from key 0 on
    value_groups_[panel] = count > 0 ? round_up(count, kTileStep) / kTileStep : 0;
    if (count <= 0) return;
    float* s = at<float>(layout.s);
    scores_of<N>(panel, count, true);
    if (m.shape.rope_heads > 1 && any_nan<N>(s, count)) {
      scores_of<N>(panel, count, false);
      add_head_rope<float, N>(m, m.rope + panel * kTileLanes, rope_queries(panel), rows, count, s);
    }
    adjust_scores<float, N>(u, queries_of, block_begin, count, 0, seen.every_end >= end, s);
    const PanelState<float> running = panel_state<float>(u, u.state, panel);
    const float c = scores_are_natural(u) ? kLog2E<float> : static_cast<float>(u.softmax_scale * kLog2E<double>);
    const auto between = [&]() __attribute__((always_inline)) { prefetch_.advance(kSoftmaxCost); };
    if (!lazy_softmax<N>(s, count, c, running.max, running.sum, probabilities(panel), between)) {
      Vec<float> alpha[N];
      softmax<float, N>(s, count, c, running.max, running.sum, alpha);
      scale_out<N>(panel, alpha);
      pack_probabilities<N>(s, count, probabilities(panel));
    }
  }

  // Scores of the keys, up to a multiple of 64.
  template <int N>
  void scores_of(int64_t panel, int64_t keys, bool with_rope) {
    const auto between = [&]() __attribute__((always_inline)) { prefetch_.advance(1); };
    const KeyGroup* group = block_.groups();
    float* s = at<float>(layout.s);
    constexpr int kTileOfS = kTileRows * kTileLanes;
    const RopeChunk* chunks = rope_chunks(panel);
    const int64_t rope_count = with_rope ? chunks_of_rope(panel) : 0;
    if constexpr (N == 1) {
      for (int64_t first = 0; first < keys; first += 4 * kGroupKeys, group += 4, s += 4 * kTileOfS) {
        const char* q = queries(panel);
        const char* a[4] = {group[0].ckv, group[1].ckv, group[2].ckv, group[3].ckv};
        const int64_t stride[4] = {group[0].ckv_stride, group[1].ckv_stride, group[2].ckv_stride, group[3].ckv_stride};
        zero_accumulators();
        for (int64_t c = 0; c < layout.latent_chunks; ++c, q += kTileBytes) {
          dots_4x1(a, stride, q, between);
          for (const char*& p : a) p += kChunkBytes;
        }
        const int64_t rope_stride[4] = {group[0].kpe_stride, group[1].kpe_stride, group[2].kpe_stride, group[3].kpe_stride};
        for (int64_t c = 0; c < rope_count; ++c, q += kTileBytes) {
          for (int i = 0; i < 4; ++i) a[i] = group[i].kpe + chunks[c].offset;
          dots_4x1(a, rope_stride, q, between);
        }
        tile_store<0>(s, kLaneRowBytes);
        tile_store<1>(s + kTileOfS, kLaneRowBytes);
        tile_store<2>(s + 2 * kTileOfS, kLaneRowBytes);
        tile_store<3>(s + 3 * kTileOfS, kLaneRowBytes);
      }
    } else {
      for (int64_t first = 0; first < keys; first += 2 * kGroupKeys, group += 2, s += 2 * kTileOfS) {
        const char* q = queries(panel);
        zero_accumulators();
        for (int64_t c = 0; c < layout.latent_chunks; ++c, q += kStepBytes)
          dots_2x2<true, true>(group[0].ckv + c * kChunkBytes, group[0].ckv_stride, group[1].ckv + c * kChunkBytes, group[1].ckv_stride, q,
                               q + kTileBytes, kTileRowBytes, between);
        for (int64_t c = 0; c < rope_count; ++c, q += kStepBytes) {
          const char *a0 = group[0].kpe + chunks[c].offset, *a1 = group[1].kpe + chunks[c].offset;
          const int64_t stride0 = group[0].kpe_stride, stride1 = group[1].kpe_stride;
          if (!chunks[c].right) {
            dots_2x2<true, false>(a0, stride0, a1, stride1, q, q + kTileBytes, kTileRowBytes, between);
          } else if (!chunks[c].left) {
            dots_2x2<false, true>(a0, stride0, a1, stride1, q, q + kTileBytes, kTileRowBytes, between);
          } else {
            dots_2x2<true, true>(a0, stride0, a1, stride1, q, q + kTileBytes, kTileRowBytes, between);
          }
        }
        tile_store<0>(s, kLaneRowBytes);
        tile_store<1>(s + kTileRows, kLaneRowBytes);
        tile_store<2>(s + kTileOfS, kLaneRowBytes);
        tile_store<3>(s + kTileOfS + kTileRows, kLaneRowBytes);
      }
    }
  }

  template <int N>
  static bool any_nan(const float* s, int64_t keys) {
    uint32_t found = 0;
    for (int64_t j = 0; j < keys; ++j) {
      for (int n = 0; n < N; ++n) {
        const Vec<float> x = load<Vec<float>>(s + j * kTileLanes + n * 16);
        found |= lanes_of(x != x);
      }
    }
    return found != 0;
  }

  // O's rows times alpha; most blocks change no maximum.
  template <int N>
  void scale_out(int64_t panel, const Vec<float> (&alpha)[N]) const {
    for (int n = 0; n < N && begun_[panel]; ++n) {
      const uint32_t changed = lanes_of(alpha[n] != 1.f);
      for (int r = 0; r < 16; ++r) {
        if (!(changed >> r & 1)) continue;
        float* row = out(panel) + out_tile(0, n, 0, N) + r * 16;
        for (int64_t i = 0; i < layout.value_tiles; ++i) {
          float* x = row + out_tile(i / 2, 0, i % 2, N);
          store(x, load<Vec<float>>(x) * alpha[n][r]);
        }
      }
    }
  }

  // Lines of the next unit's part that are as far in it as these are in O: in no cache of this core by then.
  void ask_for_part(const char* o, int64_t bytes) const {
    if (!next_part_) return;
    char* to = next_part_ + (o - reinterpret_cast<const char*>(o_));
    for (int64_t i = 0; i < bytes; i += kTileRowBytes) __builtin_prefetch(to + i);
  }

  // Into the accumulators.
  static inline __attribute__((always_inline)) void load_out(const char* o, bool begun) {
    if (!begun) return zero_accumulators();
    tile_load<0>(o);
    tile_load<1>(o + kTileBytes);
    tile_load<2>(o + 2 * kTileBytes);
    tile_load<3>(o + 3 * kTileBytes);
  }
  static inline __attribute__((always_inline)) void store_out(char* o) {
    tile_store<0>(o);
    tile_store<1>(o + kTileBytes);
    tile_store<2>(o + 2 * kTileBytes);
    tile_store<3>(o + 3 * kTileBytes);
  }

  // Columns [16 tile, 16 tile + 16 kTiles) of keys [32 group, 32 group + 32).
  template <int kTiles>
  inline __attribute__((always_inline)) void interleave(const KeyRow* rows, int64_t tile, int64_t group, char* to) {
    const KeyRow* row = rows + group * kTileStep;
    const int64_t offset = tile * kChunkBytes / 2;
#pragma GCC unroll 4
    for (int i = 0; i < kTileRows; ++i) {
      interleave_rows<kTiles>(row[2 * i].ckv + offset, row[2 * i + 1].ckv + offset, to + i * kTileRowBytes);
      if (i % (16 / kTiles) == 16 / kTiles - 1) prefetch_.advance(1);
    }
  }

  // O += P V of 16 rows: 64 columns of 32 keys are interleaved while the dots before them run.
  void values_of_tile(const KeyRow* rows) {
    constexpr int kTiles = 4;
    const auto nothing = [] {};
    const int64_t groups = value_groups_[0];
    if (groups == 0) return;
    const auto buffer = [&](int64_t step) { return at<char>(layout.v) + step % 2 * kTiles * kTileBytes; };
    int64_t step = 0;
    interleave<kTiles>(rows, 0, 0, buffer(0));
    for (int64_t tile = 0; tile < layout.value_tiles; tile += kTiles) {
      char* o = reinterpret_cast<char*>(out(0)) + tile * kTileBytes;
      load_out(o, begun_[0]);
      ask_for_part(o, kTiles * kTileBytes);
      for (int64_t g = 0; g < groups; ++g, ++step) {
        if (g + 1 < groups) {
          interleave<kTiles>(rows, tile, g + 1, buffer(step + 1));
        } else if (tile + kTiles < layout.value_tiles) {
          interleave<kTiles>(rows, tile + kTiles, 0, buffer(step + 1));
        }
        dots_1x4(probabilities(0) + g * kTileBytes, buffer(step), nothing);
      }
      store_out(o);
    }
  }

  // O += P V of many panels, which share the columns that are interleaved, 32 at a time: those of a block stay in L1 beside P of a panel.
  void values_of_panels(const KeyRow* rows, int64_t keys) {
    constexpr int kTiles = 2;
    const auto between = [&]() __attribute__((always_inline)) { prefetch_.advance(1); };
    const int64_t all_groups = round_up(keys, kTileStep) / kTileStep;
    char* v = at<char>(layout.v);
    for (int64_t tile = 0; tile < layout.value_tiles; tile += kTiles) {
      for (int64_t g = 0; g < all_groups; ++g) interleave<kTiles>(rows, tile, g, v + g * kStepBytes);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t groups = value_groups_[panel];
        if (groups == 0) continue;
        const char* p = probabilities(panel);
        if (!two_tiles(panel)) {
          char* o = reinterpret_cast<char*>(out(panel)) + tile * kTileBytes;
          ask_for_part(o, kTiles * kTileBytes);
          zero_accumulators();
          if (begun_[panel]) {
            tile_load<0>(o);
            tile_load<1>(o + kTileBytes);
          }
          for (int64_t g = 0; g < groups; ++g) dots_1x2(p + g * kTileBytes, v + g * kStepBytes, between);
          tile_store<0>(o);
          tile_store<1>(o + kTileBytes);
          continue;
        }
        char* o = reinterpret_cast<char*>(out(panel)) + tile * 2 * kTileBytes;
        load_out(o, begun_[panel]);
        ask_for_part(o, 2 * kTiles * kTileBytes);
        for (int64_t g = 0; g < groups; ++g) {
          const char *a = p + g * 2 * kTileBytes, *b = v + g * kStepBytes;
          dots_2x2<true, true>(a, kTileRowBytes, a + kTileBytes, kTileRowBytes, b, b + kTileBytes, kTileRowBytes, between);
        }
        store_out(o);
      }
    }
  }
};

inline size_t tile_scratch_bytes(const MlaDecodeShape& shape) { return TileScratch(shape).bytes; }

inline void attend_tiles(const MlaDecodeUnit& m, bool finish) {
  const TileScope tiles;
  TileDecode decode(m, finish);
  decode.begin();
  decode.attend();
  decode.finish();
}

extern const MlaDecodeIsa kMlaDecode;
const MlaDecodeIsa kMlaDecode = {
    kVectorBytes, static_cast<int>(kUnitKeys), tile_block_k, {tile_scratch_bytes, nullptr}, {attend_tiles, nullptr}, {join_tiles, nullptr}};

}  // namespace attile::ATTILE_ISA
