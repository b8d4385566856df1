// MLA decoding of one unit on tiles, bfloat16. Rows are tokens times heads, in panels of 32.
//
//   for blocks of keys:
//     for panels:              S^T = K Q^T;  adjust;  P^T = softmax;  P = transpose;  O = alpha O
//     for 64 columns of V:     interleave;  for panels:  O += P V
//
// Interleaved columns stay in L1; with one panel, 32 keys of them are made while the dots of the 32 before run. The maximum that P is
// relative to follows the scores only when they have outgrown it by 2^8, so that O is nearly never rescaled.
// K is never copied: its rows are the A operand. Where each head has its own rope key, [ckv, kpe of every head] is one long row of K, and
// Q^T is zero where a row meets another head's key, so that only chunks of the panel's own heads are multiplied. A NaN in another
// head's key would leak through such a zero: scores that are NaN are computed again, head by head.
//
// Cost for a key and 16 rows, L + R = 576, L = 512: 34 dots of 16 rows by 16, 34 * 16 cycles for 16 keys; 16 interleaved vectors, loaded and
// stored; a tenth of that for the softmax. With 16 rows that is a third of what reading 1152 bytes from memory takes, so the lines of the
// next block are asked for all along; with 128 rows the dots are everything.
#pragma once

#include "cpu/amx/pack.hpp"
#include "cpu/forward/scores.hpp"
#include "cpu/forward/softmax.hpp"
#include "cpu/forward/state.hpp"
#include "cpu/mla_decode/head_rope.hpp"
#include "cpu/mla_decode/tile_products.hpp"
#include "cpu/mla_decode/tile_scratch.hpp"

namespace attile::ATTILE_ISA {

// How far, in base 2, scores may be above the maximum that P is relative to.
inline constexpr float kLazy = 8;

class TileDecode {
 public:
  explicit TileDecode(const MlaDecodeUnit& unit)
      : m(unit),
        u(unit.base),
        layout(unit.shape),
        row_bytes(unit.shape),
        padded_rows(round_up(u.count, kTileRows)),
        panels((padded_rows + kTileLanes - 1) / kTileLanes),
        keys_of_block(round_up(u.block_k, kUnitKeys)),
        block_(unit, at<KeyGroup>(layout.groups), at<char>(layout.staged), at<char>(layout.zeros)),
        prefetch_(at<Prefetcher::Run>(layout.runs)) {
    __builtin_memset(at<char>(layout.zeros), 0, row_bytes.padded());
  }

  void begin() {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const auto row_of = [&](int64_t l) { return panel * kTileLanes + l; };
      pack_query_tiles<1>([&](int64_t l) { return row_of(l) < padded_rows ? u.rows[row_of(l)].q : nullptr; }, m.shape.latent,
                          queries(panel));
      pack_rope(panel);
      __builtin_memset(out(panel), 0, layout.value_tiles * 2 * kTileBytes);
    }
    for (int64_t r = 0; r < padded_rows; ++r) {
      static_cast<float*>(u.state.max)[r] = static_cast<float>(u.rows[r].sink_max);
      static_cast<float*>(u.state.sum)[r] = static_cast<float>(u.rows[r].sink_sum);
    }
  }

  void attend() {
    int turn = 0;
    const auto rows_at = [&](int which) { return at<KeyRow>(layout.rows) + which * keys_of_block; };
    const auto end_of = [&](int64_t begin) { return begin + u.block_k < u.key_end ? begin + u.block_k : u.key_end; };
    if (u.key_begin < u.key_end) find_keys(m, u.key_begin, end_of(u.key_begin), rows_at(0));
    for (int64_t begin = u.key_begin; begin < u.key_end; begin += u.block_k) {
      const int64_t end = end_of(begin), after = end_of(end);
      KeyRow* rows = rows_at(turn);
      turn = 1 - turn;
      if (end < u.key_end) find_keys(m, end, after, rows_at(turn));
      prefetch_.plan(rows_at(turn), end < u.key_end ? after - end : 0, row_bytes.ckv, row_bytes.kpe, block_cost(end - begin));
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
    }
  }

  // O to the layout of the state, [column][row], columns in order.
  void finish() const {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int n_count = two_tiles(panel) ? 2 : 1;
      float* to = panel_state<float>(u, u.state, panel).out;
      for (int64_t half = 0; half < layout.latent_chunks * 2; ++half) {
        for (int n = 0; n < n_count; ++n) {
          const float* tile = out(panel) + out_tile(half / 2, n, half % 2, n_count);
          Vec<float> x[16];
          for (int r = 0; r < 16; ++r) x[r] = load<Vec<float>>(tile + r * 16);
          transpose<float>(x);
          for (int w = 0; w < 16; ++w) {
            const int64_t column = half / 2 * kTileStep + column_of(half % 2, w);
            if (column < round_up(m.shape.latent, kChunk)) store(to + column * kTileLanes + n * 16, x[w]);
          }
        }
      }
    }
  }

 private:
  const MlaDecodeUnit& m;
  const Unit& u;
  const TileScratch layout;
  const RowBytes row_bytes;
  const int64_t padded_rows, panels, keys_of_block;
  KeyBlock block_;
  Prefetcher prefetch_;
  static constexpr int64_t kMostPanels = 4096 / kTileLanes;
  int64_t rope_count_[kMostPanels] = {};    // chunks of each panel
  int64_t value_groups_[kMostPanels] = {};  // of 32 keys that the panel sees of this block

  template <class T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(m.scratch + offset);
  }
  bool two_tiles(int64_t panel) const { return padded_rows - panel * kTileLanes >= kTileLanes; }
  char* queries(int64_t panel) const { return at<char>(layout.q) + panel * (layout.latent_chunks + layout.rope_chunks) * kStepBytes; }
  RopeChunk* rope_chunks(int64_t panel) const { return at<RopeChunk>(layout.rope) + panel * layout.rope_chunks; }
  float* rope_queries(int64_t panel) const { return at<float>(layout.q_rope) + panel * kTileLanes * m.shape.rope; }
  char* probabilities(int64_t panel) const { return at<char>(layout.p) + panel * (keys_of_block / kTileStep) * 2 * kTileBytes; }
  float* out(int64_t panel) const { return at<float>(layout.o) + panel * layout.value_tiles * 2 * kTileBytes / 4; }
  // [32 columns][16 rows of the panel][half]
  static int64_t out_tile(int64_t block, int n, int64_t half, int n_count) { return ((block * n_count + n) * 2 + half) * kTileBytes / 4; }

  void pack_rope(int64_t panel) {
    RopeChunk* chunks = rope_chunks(panel);
    char* to = queries(panel) + layout.latent_chunks * kStepBytes;
    const auto rope_row = [&](int64_t l) { return panel * kTileLanes + l < padded_rows ? m.rope[panel * kTileLanes + l].q : nullptr; };
    int64_t& count = rope_count_[panel];
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
    const int64_t steps = layout.latent_chunks + rope_count_[0], units = round_up(keys, kUnitKeys) / kUnitKeys,
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
    const int64_t units = round_up(count, kUnitKeys) / kUnitKeys;
    for (int64_t unit = 0; unit < units; ++unit) scores_of<N>(panel, unit, true);
    if (m.shape.rope_heads > 1 && any_nan<N>(s, count)) {
      for (int64_t unit = 0; unit < units; ++unit) scores_of<N>(panel, unit, false);
      add_head_rope<float, N>(m, m.rope + panel * kTileLanes, rope_queries(panel), rows, count, s);
    }
    adjust_scores<float, N>(u, queries_of, block_begin, count, 0, seen.every_end >= end, s);
    const PanelState<float> state = panel_state<float>(u, u.state, panel);
    const float c = scores_are_natural(u) ? kLog2E<float> : static_cast<float>(u.softmax_scale * kLog2E<double>);
    if (!lazy_softmax<N>(s, count, c, state.max, state.sum)) {
      Vec<float> alpha[N];
      softmax<float, N>(s, count, c, state.max, state.sum, alpha);
      scale_out<N>(panel, alpha);
    }
    pack_probabilities<N>(panel, s, count);
  }

  // The softmax relative to the maximum as it is. False, and nothing done: scores have outgrown it.
  template <int N>
  static bool lazy_softmax(float* s, int64_t keys, float c, const float* max_of, float* sum_of) {
    Vec<float> top[N], base[N], sum[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) top[n] = broadcast<float>(-kInfinity<float>);
#pragma GCC unroll 4
    for (int64_t j = 0; j < keys; ++j) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) top[n] = max(load<Vec<float>>(s + j * kTileLanes + n * 16), top[n]);
    }
    if (any_steep<float, N>(top, c)) return false;
    uint32_t outgrown = 0;
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      base[n] = load<Vec<float>>(max_of + n * 16);
      outgrown |= lanes_of((top[n] * c > base[n] + kLazy) | (base[n] == -kInfinity<float>));
      sum[n] = Vec<float>{};
    }
    if (outgrown) return false;
    const Vec<float> factor = broadcast<float>(c);
#pragma GCC unroll 2
    for (int64_t j = 0; j < keys; ++j) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        float* x = s + j * kTileLanes + n * 16;
        const Vec<float> p = exp2<float>(fma(load<Vec<float>>(x), factor, Vec<float>{} - base[n]));
        sum[n] += p;
        store(x, p);
      }
    }
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) store(sum_of + n * 16, load<Vec<float>>(sum_of + n * 16) + sum[n]);
    return true;
  }

  // Scores of 64 keys.
  template <int N>
  inline __attribute__((always_inline)) void scores_of(int64_t panel, int64_t unit, bool with_rope) {
    const auto between = [&]() __attribute__((always_inline)) { prefetch_.advance(1); };
    const KeyGroup* groups = block_.groups() + unit * (kUnitKeys / kGroupKeys);
    float* s = at<float>(layout.s) + unit * kUnitKeys * kTileLanes;
    constexpr int kTileOfS = kTileRows * kTileLanes;
    const RopeChunk* chunks = rope_chunks(panel);
    const int64_t rope_count = with_rope ? rope_count_[panel] : 0;
    if constexpr (N == 1) {
      const char* q = queries(panel);
      const char* a[4] = {groups[0].ckv, groups[1].ckv, groups[2].ckv, groups[3].ckv};
      const int64_t stride[4] = {groups[0].ckv_stride, groups[1].ckv_stride, groups[2].ckv_stride, groups[3].ckv_stride};
      zero_accumulators();
      for (int64_t c = 0; c < layout.latent_chunks; ++c, q += kStepBytes) {
        dots_4x1(a, stride, q, kTileRowBytes, between);
        for (const char*& p : a) p += kChunkBytes;
      }
      const int64_t rope_stride[4] = {groups[0].kpe_stride, groups[1].kpe_stride, groups[2].kpe_stride, groups[3].kpe_stride};
      for (int64_t c = 0; c < rope_count; ++c, q += kStepBytes) {
        for (int i = 0; i < 4; ++i) a[i] = groups[i].kpe + chunks[c].offset;
        dots_4x1(a, rope_stride, q, kTileRowBytes, between);
      }
      tile_store<0>(s, kLaneRowBytes);
      tile_store<1>(s + kTileOfS, kLaneRowBytes);
      tile_store<2>(s + 2 * kTileOfS, kLaneRowBytes);
      tile_store<3>(s + 3 * kTileOfS, kLaneRowBytes);
    } else {
      for (int half = 0; half < 2; ++half, groups += 2, s += 2 * kTileOfS) {
        const char* q = queries(panel);
        zero_accumulators();
        for (int64_t c = 0; c < layout.latent_chunks; ++c, q += kStepBytes)
          dots_2x2<true, true>(groups[0].ckv + c * kChunkBytes, groups[0].ckv_stride, groups[1].ckv + c * kChunkBytes, groups[1].ckv_stride,
                               q, q + kTileBytes, kTileRowBytes, between);
        for (int64_t c = 0; c < rope_count; ++c, q += kStepBytes) {
          const char *a0 = groups[0].kpe + chunks[c].offset, *a1 = groups[1].kpe + chunks[c].offset;
          if (!chunks[c].right) {
            dots_2x2<true, false>(a0, groups[0].kpe_stride, a1, groups[1].kpe_stride, q, q + kTileBytes, kTileRowBytes, between);
          } else if (!chunks[c].left) {
            dots_2x2<false, true>(a0, groups[0].kpe_stride, a1, groups[1].kpe_stride, q, q + kTileBytes, kTileRowBytes, between);
          } else {
            dots_2x2<true, true>(a0, groups[0].kpe_stride, a1, groups[1].kpe_stride, q, q + kTileBytes, kTileRowBytes, between);
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
    for (int n = 0; n < N; ++n) {
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

  // P^T [key][row] in float32 to tiles [32 keys][n][16 rows][32], zeros behind the last key.
  template <int N>
  void pack_probabilities(int64_t panel, const float* s, int64_t count) {
    for (int64_t first = 0; first < count; first += kTileStep) {
      for (int n = 0; n < N; ++n) {
        Vec<float> x[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
          const int64_t j = first + 2 * i;
          const float* from = s + j * kTileLanes + n * 16;
          x[i] = make_pairs(j < count ? load<Vec<float>>(from) : Vec<float>{},
                            j + 1 < count ? load<Vec<float>>(from + kTileLanes) : Vec<float>{});
        }
        transpose<float>(x);
        char* to = probabilities(panel) + (first / kTileStep * N + n) * kTileBytes;
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) store(to + r * kTileRowBytes, x[r]);
        prefetch_.advance(kSoftmaxCost);
      }
    }
  }

  // Columns [16 tile, 16 tile + 64) of keys [32 group, 32 group + 32).
  inline __attribute__((always_inline)) void interleave(const KeyRow* rows, int64_t tile, int64_t group, char* to) {
    const KeyRow* row = rows + group * kTileStep;
    const int64_t offset = tile * kChunkBytes / 2;
#pragma GCC unroll 4
    for (int i = 0; i < kTileRows; ++i) {
      interleave_rows(row[2 * i].ckv + offset, row[2 * i + 1].ckv + offset, to + i * kTileRowBytes);
      if (i % 4 == 3) prefetch_.advance(1);
    }
  }

  static inline __attribute__((always_inline)) void load_out(const char* o) {
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

  // O += P V of 16 rows: 32 keys of columns are interleaved while the dots before them run.
  void values_of_tile(const KeyRow* rows) {
    constexpr int64_t kBuffers = 2, kBufferBytes = kValueStep * kTileBytes;
    const auto nothing = [] {};
    const int64_t groups = value_groups_[0];
    if (groups == 0) return;
    char* v = at<char>(layout.v);
    int64_t step = 0;
    interleave(rows, 0, 0, v);
    for (int64_t tile = 0; tile < layout.value_tiles; tile += kValueStep) {
      char* o = reinterpret_cast<char*>(out(0)) + tile * kTileBytes;
      load_out(o);
      for (int64_t g = 0; g < groups; ++g, ++step) {
        char* next = v + (step + 1) % kBuffers * kBufferBytes;
        if (g + 1 < groups) {
          interleave(rows, tile, g + 1, next);
        } else if (tile + kValueStep < layout.value_tiles) {
          interleave(rows, tile + kValueStep, 0, next);
        }
        dots_1x4(probabilities(0) + g * kTileBytes, v + step % kBuffers * kBufferBytes, nothing);
      }
      store_out(o);
    }
  }

  // O += P V of many panels, which share the columns that are interleaved.
  void values_of_panels(const KeyRow* rows, int64_t keys) {
    const auto between = [&]() __attribute__((always_inline)) { prefetch_.advance(1); };
    const int64_t all_groups = round_up(keys, kTileStep) / kTileStep;
    char* v = at<char>(layout.v);
    constexpr int64_t kGroupBytes = kValueStep * kTileBytes;
    for (int64_t tile = 0; tile < layout.value_tiles; tile += kValueStep) {
      for (int64_t g = 0; g < all_groups; ++g) interleave(rows, tile, g, v + g * kGroupBytes);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t groups = value_groups_[panel];
        if (groups == 0) continue;
        const char* p = probabilities(panel);
        if (!two_tiles(panel)) {
          char* o = reinterpret_cast<char*>(out(panel)) + tile * kTileBytes;
          load_out(o);
          for (int64_t g = 0; g < groups; ++g) dots_1x4(p + g * kTileBytes, v + g * kGroupBytes, between);
          store_out(o);
          continue;
        }
        for (int half = 0; half < 2; ++half) {
          char* o = reinterpret_cast<char*>(out(panel)) + (tile + half * 2) * 2 * kTileBytes;
          load_out(o);
          for (int64_t g = 0; g < groups; ++g) {
            const char *a = p + g * 2 * kTileBytes, *b = v + g * kGroupBytes + half * 2 * kTileBytes;
            dots_2x2<true, true>(a, kTileRowBytes, a + kTileBytes, kTileRowBytes, b, b + kTileBytes, kTileRowBytes, between);
          }
          store_out(o);
        }
      }
    }
  }
};

inline size_t tile_scratch_bytes(const MlaDecodeShape& shape) { return TileScratch(shape).bytes; }

inline void attend_tiles(const MlaDecodeUnit& m, bool finish) {
  {
    const TileScope tiles;
    TileDecode decode(m);
    decode.begin();
    decode.attend();
    decode.finish();
  }
  if (finish) write_rows<float>(m.base, m.base.state);
}

extern const MlaDecodeIsa kMlaDecode;
const MlaDecodeIsa kMlaDecode = {
    kVectorBytes,          static_cast<int>(kUnitKeys), tile_block_k, {tile_scratch_bytes, nullptr}, {attend_tiles, nullptr},
    {join<float>, nullptr}};

}  // namespace attile::ATTILE_ISA
