// Forward attention of one unit on tiles: the scheme of cpu/forward/attend.hpp, its passes over scores, its state, with both
// products on AMX. Scores pass in groups of 64 keys by a panel of 32 rows, 8 KB, so they never leave L1:
//
//   for tiles of block_k keys:  K, V to scratch
//     for panels of rows, for groups of keys:  P^T = softmax(S^T), and beside it, step by step,
//       S^T of the next group = K Q^T
//       a share of O^T += V^T P^T of the panel before, whose P is complete
//
// The dots of 32 keys take 8 (head_dim + head_dim_v) / 32 * 16 cycles of the tile unit, their softmax some 300 of the vector units; the
// two overlap. O passes through tile registers once a tile. Only a tile's last products run alone.
//
// Limits: elements of v times p reach infinity a factor 2^kSlack earlier; with two or three parts an infinity in q, k or v becomes a
// NaN in the rows that see it, for another operand's lower part may be zero or negative; parts below 2^-126 are lost.
#pragma once

#include "cpu/amx/softmax.hpp"
#include "cpu/forward/rows.hpp"
#include "cpu/forward/scores.hpp"
#include "cpu/forward/softmax.hpp"
#include "cpu/forward/state.hpp"

namespace attile::ATTILE_ISA {

static_assert(kPanel<float> == kTileLanes);

// A panel's part of a tile: keys [first, first + keys) of it, first a multiple of kTileStep, in steps of that many.
struct Visit {
  int64_t panel, first, keys, steps, groups;
  bool begins;  // the panel's first: O is written, not added to
};

// A group of a visit: `keys` of them, and up to whole steps.
struct Group {
  int64_t first, keys, steps;  // first in the tile
};

inline constexpr int64_t kMostPanels = 128;

template <int kParts>
class TileAttention {
 public:
  explicit TileAttention(const Unit& unit)
      : u(unit),
        panels((u.count + kTileLanes - 1) / kTileLanes),
        chunks((u.head_dim + kTileStep - 1) / kTileStep),
        columns(round_up(u.head_dim_v, kChunk)),
        blocks((columns + kTileStep - 1) / kTileStep),
        factor(scores_are_natural(u) ? kLog2E<float> : static_cast<float>(u.softmax_scale * kLog2E<double>)) {
    for (int64_t l = 0, first = (panels - 1) * kTileLanes; l < kTileLanes; ++l)
      last_rows[l] = u.rows[first + l < u.count ? first + l : u.count - 1];
    for (int64_t panel = 0; panel < panels; ++panel) seen[panel] = panel_keys(rows(panel), kTileLanes);
  }

  void begin() const {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const QueryRow* from = rows(panel);
      if (panel + 1 < panels) {
        const QueryRow* next = rows(panel + 1);
        prefetch_rows([next](int64_t l) { return next[l].q; }, 0, kTileLanes, u.head_dim * kElementBytes<kParts>);
      }
      pack_query_tiles<kParts>([from](int64_t l) { return from[l].q; }, u.head_dim, queries(panel));
      for (int l = 0; l < kTileLanes; ++l) {
        const double base = __builtin_ceil(from[l].sink_max);
        max_of(panel)[l] = static_cast<float>(base);
        sum_of(panel)[l] = static_cast<float>(from[l].sink_sum == 0 ? 0 : from[l].sink_sum * __builtin_exp2(from[l].sink_max - base));
        top_of(panel)[l] = -kInfinity<float>;
      }
    }
  }

  template <int kDegree>
  void attend(int64_t tile_begin, int64_t tile_end) {
    pack(tile_begin, tile_end);
    const int64_t visit_count = find_visits(tile_begin, tile_end);
    if (visit_count == 0) return;
    int turn = 0, side = 0;  // of the two buffers of S and of P
    GroupSoftmax<kParts, kDegree> softmax;
    const auto nothing = [] {};
    scores_of<kDegree>(visits[0], 0, scores(turn), nothing);
    for (int64_t i = 0; i < visit_count; ++i) {
      const Visit& now = visits[i];
      const Visit* before = i > 0 ? &visits[i - 1] : nullptr;
      for (int64_t g = 0; g < now.groups; ++g) {
        const Group group = group_of(now, g);
        float* s = scores(turn);
        char* p = probabilities(side) + (group.first - now.first) / kTileStep * kParts * kStepBytes;
        adjust(now, group, tile_begin, s);
        const bool beside = begin_group(now.panel, group, s, p, softmax);

        const bool last = g + 1 == now.groups;
        const Visit* ahead = !last ? &now : i + 1 < visit_count ? &visits[i + 1] : nullptr;
        const int64_t ahead_group = last ? 0 : g + 1;
        const int64_t first_block = before ? g * blocks / now.groups : 0, end_block = before ? (g + 1) * blocks / now.groups : 0;
        int64_t steps = ahead ? group_of(*ahead, ahead_group).steps * chunks : 0;
        if (before) steps += (end_block - first_block) * before->steps;
        const int64_t pairs = steps > 0 ? (group.steps * kStepPairs + steps - 1) / steps : 0;
        if (ahead && u.bias_dtype != DType::none) prefetch_bias(*ahead, tile_begin + group_of(*ahead, ahead_group).first);
        const auto between = [&]() __attribute__((always_inline)) { softmax.advance(pairs); };
        if (ahead) scores_of<kDegree>(*ahead, ahead_group, scores(1 - turn), between);
        for (int64_t b = first_block; b < end_block; ++b) values_of(*before, b, probabilities(1 - side), between);

        if (beside) {
          softmax.finish();
          end_group(now, group, tile_begin, s, p, softmax);
        } else {
          careful_group(now, group, tile_begin, s, p, softmax);
        }
        turn = 1 - turn;
      }
      side = 1 - side;
    }
    for (int64_t b = 0; b < blocks; ++b) values_of(visits[visit_count - 1], b, probabilities(1 - side), nothing);
  }

  // O of panels that have seen nothing.
  void clear_unseen() const {
    for (int64_t panel = 0; panel < panels; ++panel) {
      if (begun[panel]) continue;
      float* o = out(panel);
      for (int64_t i = 0; i < columns * kTileLanes; i += kLanes<float>) store(o + i, Vec<float>{});
    }
  }

  // Without normalisation out is relative to the exact maximum.
  void settle() const {
    for (int64_t panel = 0; panel < panels; ++panel) {
      Vec<float> alpha[2];
      for (int n = 0; n < 2; ++n) {
        const Vec<float> base = load<Vec<float>>(max_of(panel) + n * 16), top = load<Vec<float>>(top_of(panel) + n * 16);
        Vec<float> sink;
        for (int l = 0; l < 16; ++l) sink[l] = static_cast<float>(rows(panel)[n * 16 + l].sink_max);
        const Vec<float> c = broadcast<float>(factor);
        const Vec<float> below = fma(top, c, Vec<float>{} - base), sink_below = sink - base;
        const Vec<float> difference = below > sink_below ? below : sink_below, largest = below > sink_below ? top * c : sink;
        const auto exact = (base != ceil(base)) | outgrown(base) | (base == -kInfinity<float>);
        const Vec<float> sum = load<Vec<float>>(sum_of(panel) + n * 16);
        alpha[n] = (exact ? broadcast<float>(1) : exp2<float>(Vec<float>{} - difference)) + (sum - sum);  // a NaN is only in the sum
        store(max_of(panel) + n * 16, exact ? base : largest);
        store(sum_of(panel) + n * 16, sum * alpha[n]);
      }
      scale_lanes(out(panel), columns, alpha);
    }
  }

 private:
  const Unit& u;
  const int64_t panels, chunks, columns, blocks;  // of rows; of 32 dims; of head_dim_v as padded; of 32 columns
  const float factor;                             // takes scores to base 2
  int64_t tile_steps = 0;
  PanelKeys seen[kMostPanels];
  bool begun[kMostPanels] = {};
  Visit visits[kMostPanels];
  QueryRow last_rows[kTileLanes];  // of the last panel, filled up with copies of the last row

  const QueryRow* rows(int64_t panel) const { return panel + 1 < panels ? u.rows + panel * kTileLanes : last_rows; }
  char* queries(int64_t panel) const { return static_cast<char*>(u.scratch.q) + panel * chunks * kParts * kStepBytes; }
  float* scores(int turn) const { return static_cast<float*>(u.scratch.scores) + turn * kGroup * kTileLanes; }
  char* probabilities(int side) const {
    return static_cast<char*>(u.scratch.probabilities) + side * u.block_k / kTileStep * kParts * kStepBytes;
  }
  float* out(int64_t panel) const { return static_cast<float*>(u.state.out) + panel * columns * kTileLanes; }
  float* max_of(int64_t panel) const { return static_cast<float*>(u.state.max) + panel * kTileLanes; }
  float* sum_of(int64_t panel) const { return static_cast<float*>(u.state.sum) + panel * kTileLanes; }
  float* top_of(int64_t panel) const { return static_cast<float*>(u.scratch.tops) + panel * kTileLanes; }

  static auto outgrown(Vec<float> base) {
    return ((base > kLargestBase) | (base < -kLargestBase)) & (base > -kInfinity<float>);
  }

  void pack(int64_t tile_begin, int64_t tile_end) {
    const int64_t keys = tile_end - tile_begin;
    tile_steps = (keys + kTileStep - 1) / kTileStep;
    with_rows(u, tile_begin, [&](auto k_row, auto v_row) {
      const int64_t all = (u.maker.make ? tile_end : u.key_end) - tile_begin;  // rows that exist
      pack_key_tiles<kParts>(k_row, keys, u.head_dim, static_cast<char*>(u.scratch.k), all);
      pack_value_tiles<kParts>(v_row, keys, u.head_dim_v, static_cast<char*>(u.scratch.v), all);
    });
    read_key_ids(u, tile_begin, keys);
  }

  int64_t find_visits(int64_t tile_begin, int64_t tile_end) {
    int64_t count = 0;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t begin = seen[panel].begin > tile_begin ? seen[panel].begin : tile_begin;
      const int64_t end = seen[panel].end < tile_end ? seen[panel].end : tile_end;
      if (begin >= end) continue;
      const int64_t first = (begin - tile_begin) / kTileStep * kTileStep, keys = end - tile_begin - first;
      visits[count++] = {panel, first, keys, (keys + kTileStep - 1) / kTileStep, (keys + kGroup - 1) / kGroup, !begun[panel]};
      begun[panel] = true;
    }
    return count;
  }

  // The lines of a group's bias, which lie a row of it apart.
  void prefetch_bias(const Visit& visit, int64_t key) const {
    const QueryRow* from = rows(visit.panel);
    const int64_t bytes = u.bias_stride * kGroup;
    for (int l = 0; l < kTileLanes; ++l)
      for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from[l].bias + key * u.bias_stride + i, 0, 2);
  }

  static Group group_of(const Visit& visit, int64_t g) {
    const int64_t rest = visit.keys - g * kGroup, keys = rest < kGroup ? rest : kGroup;
    return {visit.first + g * kGroup, keys, (keys + kTileStep - 1) / kTileStep};
  }

  // Scores behind an lse are as accurate as float32.
  template <int kDegree, class Between>
  inline __attribute__((always_inline)) void scores_of(const Visit& visit, int64_t g, float* s, Between between) const {
    const Group group = group_of(visit, g);
    const char* k = static_cast<const char*>(u.scratch.k) + group.first / kTileStep * chunks * kParts * kStepBytes;
    for (int64_t i = 0; i < group.steps; ++i) {
      tile_product<kParts, kDegree == kAccurate, 2, false>(k, queries(visit.panel), chunks, s, between);
      k += chunks * kParts * kStepBytes;
      s += kTileStep * kTileLanes;
    }
  }

  // Columns [32 block, 32 block + 32) of O.
  template <class Between>
  inline __attribute__((always_inline)) void values_of(const Visit& visit, int64_t block, const char* p, Between between) const {
    const char* v = static_cast<const char*>(u.scratch.v) + (block * tile_steps + visit.first / kTileStep) * kParts * kStepBytes;
    float* o = out(visit.panel) + block * kTileStep * kTileLanes;
    const bool whole = columns - block * kTileStep >= kTileStep;
    if (__builtin_expect(visit.begins, 0)) {
      if (whole) return tile_product<kParts, false, 2, false>(v, p, visit.steps, o, between);
      return tile_product<kParts, false, 1, false>(v, p, visit.steps, o, between);
    }
    if (whole) return tile_product<kParts, false, 2, true>(v, p, visit.steps, o, between);
    tile_product<kParts, false, 1, true>(v, p, visit.steps, o, between);
  }

  // The passes between product and softmax; keys beyond the visit's are unseen. Those before the first that a row does not see need no
  // test of positions.
  void adjust(const Visit& visit, const Group& group, int64_t tile_begin, float* s) const {
    const int64_t key = tile_begin + group.first, end = key + group.keys;
    const PanelKeys& panel = seen[visit.panel];
    adjust_scores<float, 2>(u, rows(visit.panel), key, group.keys, group.first, true, s);
    const int64_t first = panel.every_begin > key || panel.every_end < key ? key : panel.every_end;
    if (first < end) apply_positions<float, 2>(rows(visit.panel), first, end - first, s + (first - key) * kTileLanes);
    for (int64_t i = group.keys * kTileLanes; i < group.steps * kTileStep * kTileLanes; i += kLanes<float>)
      store(s + i, broadcast<float>(-kInfinity<float>));
  }

  bool load_base(int64_t panel, Vec<float> (&base)[2]) const {
    uint32_t exact = 0;
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      base[n] = load<Vec<float>>(max_of(panel) + n * 16);
      exact |= lanes_of(outgrown(base[n]) | ((base[n] != ceil(base[n])) & (base[n] == base[n])));
    }
    return exact == 0 && factor > 0x1p-100f && factor < 0x1p100f;
  }

  // Rows that have seen nothing take their base from this group. False: this group has to be done carefully.
  template <int kDegree>
  inline __attribute__((always_inline)) bool begin_group(int64_t panel, const Group& group, const float* s, char* p,
                                                         GroupSoftmax<kParts, kDegree>& softmax) const {
    Vec<float> base[2];
    if (!load_base(panel, base) || u.dropout) return false;
    if (lanes_of((base[0] == -kInfinity<float>) | (base[1] == -kInfinity<float>))) {
      Vec<float> top[2], none[2] = {base[0], base[1]};
      group_top(s, group.steps * kTileStep, top);
      if (!raised(none, top, base)) return false;
      for (int n = 0; n < 2; ++n) {
        base[n] = none[n] == -kInfinity<float> ? base[n] : none[n];
        store(max_of(panel) + n * 16, base[n]);
      }
    }
    softmax.begin(s, p, group.steps * kTileStep, base, factor);
    return true;
  }

  // Where the maximum has outgrown the base, the next integer above it. False: such a base would lose digits.
  bool raised(const Vec<float> (&base)[2], const Vec<float> (&top)[2], Vec<float> (&now)[2]) const {
    uint32_t exact = 0;
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      const Vec<float> scaled = top[n] * factor;
      now[n] = scaled > base[n] + kSlack ? ceil(scaled) : base[n];
      exact |= lanes_of(outgrown(now[n]));
    }
    return exact == 0;
  }

  // Everything that is relative to the old base, P of this visit's earlier groups included.
  void rescale(const Visit& visit, const Group& group, char* p, const Vec<float> (&alpha)[2]) const {
    if (!lanes_of((alpha[0] != 1.f) | (alpha[1] != 1.f))) return;
    const int64_t steps = (group.first - visit.first) / kTileStep;
    scale_probabilities<kParts>(p - steps * kParts * kStepBytes, steps, alpha);
    if (!visit.begins) scale_lanes(out(visit.panel), columns, alpha);
  }

  // Raises the base of rows whose maximum has outgrown it.
  bool raise(const Visit& visit, const Group& group, char* p, const Vec<float> (&top)[2], Vec<float> (&base)[2]) const {
    Vec<float> now[2], alpha[2];
    if (!raised(base, top, now)) return false;
    for (int n = 0; n < 2; ++n) {
      alpha[n] = now[n] == base[n] ? broadcast<float>(1) : exp2<float>(base[n] - now[n]);
      base[n] = now[n];
      float* sum = sum_of(visit.panel) + n * 16;
      store(sum, load<Vec<float>>(sum) * alpha[n]);
      store(max_of(visit.panel) + n * 16, now[n]);
    }
    rescale(visit, group, p, alpha);
    return true;
  }

  void add(int64_t panel, const Vec<float> (&sum)[2], const Vec<float> (&top)[2]) const {
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      float *sums = sum_of(panel) + n * 16, *tops = top_of(panel) + n * 16;
      store(sums, load<Vec<float>>(sums) + sum[n]);
      store(tops, max(top[n], load<Vec<float>>(tops)));
    }
  }

  template <int kDegree>
  inline __attribute__((always_inline)) void end_group(const Visit& visit, const Group& group, int64_t tile_begin, float* s, char* p,
                                                       GroupSoftmax<kParts, kDegree>& softmax) const {
    if (__builtin_expect(softmax.outgrown(), 0)) {
      careful_group(visit, group, tile_begin, s, p, softmax);
    } else {
      add(visit.panel, softmax.sum, softmax.top);
    }
  }

  // The maximum first, then p in place, for what has to see or change p itself.
  template <int kDegree>
  __attribute__((noinline)) void careful_group(const Visit& visit, const Group& group, int64_t tile_begin, float* s, char* p,
                                               const GroupSoftmax<kParts, kDegree>&) const {
    const int64_t padded = group.steps * kTileStep;
    Vec<float> base[2], top[2], sum[2] = {};
    group_top(s, padded, top);
    if (load_base(visit.panel, base) && raise(visit, group, p, top, base)) {
      GroupSoftmax<kParts, kDegree> softmax;
      softmax.begin(s, p, padded, base, factor);
      softmax.in_place(s, padded);
      sum[0] = softmax.sum[0];
      sum[1] = softmax.sum[1];
    } else {
      Vec<float> alpha[2];
      softmax_of_any_size(visit, padded, s, alpha);
      rescale(visit, group, p, alpha);
    }
    add(visit.panel, sum, top);
    if (u.dropout) apply_dropout<float, 2>(u, rows(visit.panel), tile_begin + group.first, group.keys, s);
    for (int64_t pair = 0; pair < padded / 2; ++pair) {
      char* to = p + pair / kStepPairs * kParts * kStepBytes + pair % kStepPairs * kTileRowBytes;
      for (int n = 0; n < 2; ++n) {
        const float* from = s + 2 * pair * kTileLanes + n * 16;
        store_pair<kParts>(load<Vec<float>>(from), load<Vec<float>>(from + kTileLanes), to + n * kTileBytes);
      }
    }
  }

  void softmax_of_any_size(const Visit& visit, int64_t keys, float* s, Vec<float> (&alpha)[2]) const {
    softmax<float, 2>(s, keys, factor, max_of(visit.panel), sum_of(visit.panel), alpha);
  }
};

template <int kParts>
void attend_tiles(const Unit& u, bool finish) {
  constexpr int kQuick = kParts == 1 ? 3 : kParts == 2 ? 4 : kAccurate;
  {
    const TileScope tiles;
    TileAttention<kParts> attention(u);
    attention.begin();
    const bool quick = u.rows[0].lse == nullptr && u.normalize;
    for (int64_t begin = u.key_begin; begin < u.key_end; begin += u.block_k) {
      const int64_t end = begin + u.block_k < u.key_end ? begin + u.block_k : u.key_end;
      if (u.maker.make) u.maker.make(u, begin, end);
      if (quick) {
        attention.template attend<kQuick>(begin, end);
      } else {
        attention.template attend<kAccurate>(begin, end);
      }
    }
    attention.clear_unseen();
    if (!u.normalize) attention.settle();
  }
  if (finish) write_rows<float>(u, u.state);
}

// bfloat16, float16, float32.
extern const ForwardIsa kForward[3];
const ForwardIsa kForward[3] = {{kVectorBytes, kTileStep, {attend_tiles<1>, nullptr}, {join<float>, nullptr}, 1},
                                {kVectorBytes, kTileStep, {attend_tiles<2>, nullptr}, {join<float>, nullptr}, 2},
                                {kVectorBytes, kTileStep, {attend_tiles<3>, nullptr}, {join<float>, nullptr}, 3}};

}  // namespace attile::ATTILE_ISA
