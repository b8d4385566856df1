// Forward attention of one unit on tiles: the scheme of cpu/forward/attend.hpp, its passes over scores, its state, with both
// products on AMX. Scores pass in groups of 64 keys by a panel of 32 rows, 8 KB, so they never leave L1:
//
//   for tiles of block_k keys, all of them where L2 has room
//     for panels of rows
//       for groups of keys:  P^T = softmax(S^T), and beside it, between all dots, S^T of the next group = K Q^T
//       O^T += V^T P^T, and beside it tiles of bias, and what other panels need: Q, K and V packed, out written
//
// The dots of 32 keys take 8 (head_dim + head_dim_v) / 32 * 16 cycles of the tile unit, their softmax some 300 of the vector units; what
// stands beside each other overlaps. Products of values have no softmax beside them: that would take a second P. A panel meets a tile in
// one visit, with P of all its keys: a visit costs as much as ten steps of four dots, more than P gains by staying in L1.
//
// With two or three parts an infinity in q, k or v becomes a NaN in the rows that see it, for another operand's lower part may be zero or
// negative. A unit with a sum or an O that is no finite number is computed again, by the vectors: 256 instructions a panel at head_dim_v
// 128 find out, and a unit whose numbers are finite pays nothing more.
//
// Limits: with one part, elements of v times p reach infinity a factor 2^kSlack earlier; parts below 2^-126 are lost.
#pragma once

#include "cpu/amx/bias.hpp"
#include "cpu/amx/chores.hpp"

namespace attile::avx512 {
extern const ForwardIsa kForward;
}

namespace attile::ATTILE_ISA {

inline constexpr int64_t kMostPanels = 4096 / kTileLanes;  // of the most rows that a block may have

template <int kParts>
class TileAttention {
 public:
  TileAttention(const Unit& unit, bool finish)
      : u(unit),
        bias_(unit),
        apart_(!finish || u.key_end - u.key_begin > u.block_k),
        state_(unit, scores_are_natural(u) && !bias_.used() ? kLog2E<float> : static_cast<float>(u.softmax_scale * kLog2E<double>), apart_),
        chores_(unit, state_, apart_, finish),
        without_bias_(unit) {
    without_bias_.bias_dtype = DType::none;
    for (int64_t panel = 0; panel < state_.panels; ++panel) seen_[panel] = panel_keys(state_.rows(panel), kTileLanes);
  }

  template <int kDegree>
  void attend(int64_t tile_begin, int64_t tile_end) {
    chores_.begin_tile(tile_begin, tile_end);
    read_key_ids(u, tile_begin, tile_end - tile_begin);
    const int64_t visit_count = find_visits(tile_begin, tile_end);
    if (visit_count == 0) return;
    const auto visit = [&](int64_t i) { return i < visit_count ? &visits_[i] : nullptr; };
    int turn = 0;  // of the two buffers of S
    GroupSoftmax<kParts, kDegree> softmax;
    prepare(visit(0), visit(1));
    scores_of<kDegree>(visits_[0], 0, scores(turn), [] {});
    make_bias(visit(0), visit(1));
    for (int64_t i = 0; i < visit_count; ++i) {
      const Visit& now = visits_[i];
      chores_.open(now, visit(i + 1), visit(i + 2));
      for (int64_t g = 0; g < now.groups; ++g) {
        const Group group = group_of(now, g);
        float* s = scores(turn);
        char* p = probabilities() + g * kGroupSteps * kParts * kStepBytes;
        adjust(now, g, s);
        const bool natural = bias_.used() && !bias_.holds(now, g);
        const bool beside = !natural && state_.begin_group(now.panel, group, s, p, softmax);

        const bool last = g + 1 == now.groups;
        const Visit* next = last ? visit(i + 1) : &now;
        if (next) {
          const int64_t next_group = last ? 0 : g + 1, calls = group_of(*next, next_group).steps * chores_.chunks * kScoreCalls;
          const int64_t pairs = (group.steps * kStepPairs + calls - 1) / calls;
          if (last) chores_.pack(*next);
          if (kScorePace == Pace::dot && pairs == 1) {
            scores_of<kDegree>(*next, next_group, scores(1 - turn), [&]() __attribute__((always_inline)) { softmax.advance(); });
          } else {
            scores_of<kDegree>(*next, next_group, scores(1 - turn), [&]() __attribute__((always_inline)) { softmax.advance(pairs); });
          }
        }
        if (beside) {
          softmax.finish();
          state_.end_group(now, group, s, p, softmax);
        } else {
          state_.careful_group(now, group, s, p, softmax, natural ? kLog2E<float> : state_.factor);
        }
        turn = 1 - turn;
      }
      values_beside(now, visit(i + 1), visit(i + 2));
      if (now.ends) {
        if constexpr (kParts > 1) doubt_ += state_.doubt(now.panel);
        chores_.leave(now.panel);
      }
    }
    chores_.complete_left();
  }

  // Panels that have seen nothing.
  void complete_unseen() const {
    for (int64_t panel = 0; panel < state_.panels; ++panel) {
      if (begun_[panel]) continue;
      state_.clear_out(panel);
      chores_.complete(panel);
    }
  }

  bool is_finite() const { return lanes_of(doubt_ == doubt_) == 0xFFFF; }

 private:
  // Code for one part alone is small enough to stand between all dots.
  static constexpr Pace kScorePace = kParts == 1 ? Pace::dot : Pace::step;
  static constexpr int kScoreCalls = kScorePace == Pace::dot ? 4 : 1;  // a step

  const Unit& u;
  BiasTiles bias_;
  const bool apart_;  // a panel's queries and O are needed again after those of others
  const TileState<kParts> state_;
  TileChores<kParts> chores_;
  Unit without_bias_;
  PanelKeys seen_[kMostPanels];
  bool begun_[kMostPanels] = {};
  Visit visits_[kMostPanels];
  RowsAhead mask_ahead_, bias_ahead_;
  Vec<float> doubt_{};  // NaN where a panel's was

  float* scores(int turn) const { return static_cast<float*>(u.scratch.scores) + turn * kGroup * kTileLanes; }
  char* probabilities() const { return static_cast<char*>(u.scratch.probabilities); }

  int64_t find_visits(int64_t tile_begin, int64_t tile_end) {
    int64_t count = 0;
    for (int64_t panel = 0; panel < state_.panels; ++panel) {
      const PanelKeys& seen = seen_[panel];
      const int64_t begin = seen.begin > tile_begin ? seen.begin : tile_begin, end = seen.end < tile_end ? seen.end : tile_end;
      if (begin >= end) continue;
      Visit& visit = visits_[count];
      visit.panel = panel;
      visit.first = (begin - tile_begin) / kTileStep * kTileStep;
      visit.key = tile_begin + visit.first;
      visit.keys = end - visit.key;
      visit.steps = (visit.keys + kTileStep - 1) / kTileStep;
      visit.groups = (visit.keys + kGroup - 1) / kGroup;
      visit.rows = state_.rows(panel);
      visit.turn = static_cast<int>(count % 2);
      visit.begins = !begun_[panel];
      visit.ends = seen.end <= tile_end || tile_end == u.key_end;
      begun_[panel] = true;
      ++count;
    }
    return count;
  }

  // Before a tile's first product: what else is asked for and made beside the visits before.
  __attribute__((noinline)) void prepare(const Visit* first, const Visit* second) {
    const auto ask_for_queries = [this](const Visit* visit) {
      if (visit == nullptr || !visit->begins) return;
      prefetch_rows([rows = visit->rows](int64_t l) { return rows[l].q; }, 0, kTileLanes, u.head_dim * kElementBytes<kParts>);
    };
    ask_for_queries(first);
    ask_for_queries(second);
    chores_.pack(*first);
    make_bias(nullptr, first);
  }

  void make_bias(const Visit* visit, const Visit* next) {
    bias_.queue(visit, next);
    bias_.make(bias_.left());
  }

  // Asked for beside a visit: the mask of the next one, the bias of the one after that.
  __attribute__((noinline)) void look_ahead(const Visit& now, const Visit* next, const Visit* then) {
    const int64_t calls = chores_.blocks * now.steps;
    const auto rows_of = [&](const auto& first_row, int64_t first, int64_t bytes) {
      return RowsAhead(first_row, kTileLanes, first, bytes, calls);
    };
    if (next && u.mask_bytes != 0) mask_ahead_ = rows_of(next->rows->mask, next->key * u.mask_stride, next->keys * u.mask_stride);
    if (then && u.bias_dtype != DType::none) bias_ahead_ = rows_of(then->rows->bias, then->key * u.bias_stride, then->keys * u.bias_stride);
  }

  // Scores behind an lse are as accurate as float32.
  template <int kDegree, class Between>
  inline __attribute__((always_inline)) void scores_of(const Visit& visit, int64_t g, float* s, Between between) const {
    const Group group = group_of(visit, g);
    const char* k = chores_.keys(group.first);
    const bool has_bias = kParts == 1 && bias_.holds(visit, g);
    for (int64_t i = 0; i < group.steps; ++i) {
      zero_product<2>();
      if (has_bias) bias_.add(g * kGroupSteps + i);
      continue_product<kParts, kDegree == kAccurate, 2, Source::passing, kScorePace>(k, chores_.queries(visit.panel), chores_.chunks,
                                                                                     between);
      store_product<2>(s);
      k += chores_.chunks * kParts * kStepBytes;
      s += kTileStep * kTileLanes;
    }
  }

  // O (+)= V^T P^T, 32 columns at a time.
  template <class Between>
  inline __attribute__((always_inline)) void values_of(const Visit& visit, Between between) const {
    const char* v = chores_.values(visit.first);
    float* o = state_.out(visit.panel);
    int64_t column = 0;
    for (; state_.columns - column >= kTileStep; column += kTileStep) {
      visit.begins ? zero_product<2>() : load_product<2>(o);
      continue_product<kParts, false, 2, Source::passing>(v, probabilities(), visit.steps, between);
      store_product<2>(o);
      v += chores_.values_block_bytes();
      o += kTileStep * kTileLanes;
    }
    if (column == state_.columns) return;
    visit.begins ? zero_product<1>() : load_product<1>(o);
    continue_product<kParts, false, 1, Source::passing>(v, probabilities(), visit.steps, between);
    store_product<1>(o);
  }

  __attribute__((noinline)) void values_beside(const Visit& now, const Visit* next, const Visit* then) {
    look_ahead(now, next, then);
    bias_.queue(next, then);
    const int64_t steps = chores_.blocks * now.steps, tiles = (bias_.left() + steps - 1) / steps;
    values_of(now, [&]() __attribute__((always_inline)) {
      mask_ahead_.ask();
      chores_.tick();
      bias_ahead_.ask();
      if (tiles > 0) bias_.make(tiles);
    });
    bias_.make(bias_.left());
    chores_.close();
  }

  // The passes between product and softmax; keys beyond the visit's are unseen. Those before the first that a row does not see need no
  // test of positions.
  void adjust(const Visit& visit, int64_t g, float* s) const {
    const Group group = group_of(visit, g);
    const int64_t key = group.key, end = key + group.keys;
    const PanelKeys& panel = seen_[visit.panel];
    adjust_scores<float, 2>(bias_.holds(visit, g) ? without_bias_ : u, visit.rows, key, group.keys, group.first, true, s);
    const int64_t first = panel.every_begin > key || panel.every_end < key ? key : panel.every_end;
    if (first < end) apply_positions<float, 2>(visit.rows, first, end - first, s + (first - key) * kTileLanes);
    for (int64_t i = group.keys * kTileLanes; i < group.steps * kTileStep * kTileLanes; i += kLanes<float>)
      store(s + i, broadcast<float>(-kInfinity<float>));
  }
};

// Within scratch for tiles of at least two parts: a tile of half the keys leaves room for what pads its rows. Of scores there are 128 rows.
inline __attribute__((noinline)) void attend_by_vectors(const Unit& u, bool finish) {
  constexpr int64_t kMostKeys = 96;
  static_assert(kMostKeys <= 2 * kTileGroup);
  const ForwardIsa& vectors = avx512::kForward;
  Unit again = u;
  again.block_k = u.block_k / 2 < kMostKeys ? u.block_k / 2 : kMostKeys;
  again.k_rows = again.block_k + vectors.block_step;
  vectors.attend[0](again, finish);
}

template <int kParts>
void attend_tiles(const Unit& u, bool finish) {
  constexpr int kQuick = kParts == 1 ? 3 : kParts == 2 ? 4 : kAccurate;
  const TileScope tiles;
  TileAttention<kParts> attention(u, finish);
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
  attention.complete_unseen();
  if (u.out_is_large) _mm_sfence();
  if (kParts > 1 && !attention.is_finite()) attend_by_vectors(u, finish);  // the tiles are still held: u.maker may want them
}

// bfloat16, float16, float32.
extern const ForwardIsa kForward[3];
const ForwardIsa kForward[3] = {{kVectorBytes, kTileStep, {attend_tiles<1>, nullptr}, {join<float>, nullptr}, 1},
                                {kVectorBytes, kTileStep, {attend_tiles<2>, nullptr}, {join<float>, nullptr}, 2},
                                {kVectorBytes, kTileStep, {attend_tiles<3>, nullptr}, {join<float>, nullptr}, 3}};

}  // namespace attile::ATTILE_ISA
