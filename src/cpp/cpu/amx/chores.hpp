// What panels of rows need beside their products: their queries, and K and V of the tile as far as they are the first to see it, packed;
// their out written. It is done in chores of some 130 instructions beside the dots of another panel's values, where the vectors are idle:
//
//   beside the values of panel n:  queries of panel n + 2, K and V of the tile up to its last key; out of panel n - 1
//
// On a causal diagonal that is 32 rows of each of Q, K, V and out a panel, 32 KB of memory and some 2000 shuffles, against 500 dots and
// more. What a chore touches is asked for some chores ahead. Chores, and lines asked for, are spread evenly over the panel's steps: whoever
// asks for many lines at once holds up the tiles, and rows that lie a power of two apart have few places in a cache, so that what was
// asked for a panel ahead would be gone.
//
// Limits: what a tile's first two panels need is packed at once, all of K and V where there is no diagonal.
#pragma once

#include "cpu/amx/state.hpp"
#include "cpu/forward/ahead.hpp"
#include "cpu/forward/rows.hpp"

namespace attile::ATTILE_ISA {

inline constexpr int64_t kQuerySlots = 3;

template <int kParts>
class TileChores {
 public:
  // apart: a panel's queries and O are needed again after those of others. finish: out is to be written.
  TileChores(const Unit& unit, const TileState<kParts>& state, bool apart, bool finish)
      : u(unit),
        chunks((u.head_dim + kTileStep - 1) / kTileStep),
        blocks((state.columns + kTileStep - 1) / kTileStep),
        state_(state),
        apart_(apart),
        finish_(finish),
        out_in_chores_(finish && u.normalize && u.rows[0].lse == nullptr && u.head_dim_v % kWords == 0) {}

  const Unit& u;
  const int64_t chunks, blocks;  // of 32 dims; of 32 columns

  char* queries(int64_t panel) const {
    return static_cast<char*>(u.scratch.q) + (apart_ ? panel : panel % kQuerySlots) * chunks * kParts * kStepBytes;
  }
  // From row `first` of the tile on, a multiple of 32; of V, in the first block of columns.
  const char* keys(int64_t first) const { return keys() + first / kTileStep * chunks * kParts * kStepBytes; }
  const char* values(int64_t first) const { return values() + first / kTileStep * kParts * kStepBytes; }
  int64_t values_block_bytes() const { return tile_steps_ * kParts * kStepBytes; }

  void begin_tile(int64_t begin, int64_t end) {
    tile_begin_ = begin;
    tile_keys_ = end - begin;
    tile_steps_ = (tile_keys_ + kTileStep - 1) / kTileStep;
    packed_ = chore_ = chores_ = 0;
    queries_ready_ = kNone;
  }

  // What a panel's first product needs, if it is not there.
  __attribute__((noinline)) void pack(const Visit& visit) {
    if (visit.begins && visit.panel > queries_ready_) {
      pack_query_tiles<kParts>(query_row(visit.panel), u.head_dim, queries(visit.panel));
      queries_ready_ = visit.panel;
    }
    const int64_t first = packed_, needed = visit.first + visit.steps * kTileStep, end = needed < tile_keys_ ? needed : tile_keys_;
    if (needed <= first) return;
    packed_ = needed;
    with_rows(u, tile_begin_, [&](auto k_row, auto v_row) {
      const int64_t all = u.maker.make ? tile_keys_ : u.key_end - tile_begin_;  // rows that exist
      pack_key_tiles<kParts>(k_row, end, u.head_dim, keys(), all, first);
      pack_value_tiles<kParts>(v_row, end, u.head_dim_v, values(), all, first, tile_steps_);
    });
  }

  // The chores beside a visit's values, the first of them asked for; null: there is no such visit in this tile.
  __attribute__((noinline)) void open(const Visit& now, const Visit* next, const Visit* then) {
    const auto has_room = [&](const Visit* visit) { return visit && (apart_ || visit->panel - now.panel < kQuerySlots); };
    if (has_room(next)) pack(*next);
    query_chores_ = 0;
    first_step_ = packed_ / kTileStep;
    coming_ = has_room(then) ? then->panel : kNone;
    if (coming_ != kNone) {
      if (then->begins) {
        query_chores_ = chunks * kSides;
        queries_ready_ = coming_;
      }
      const int64_t needed = then->first + then->steps * kTileStep;
      if (needed > packed_) packed_ = needed;
    }
    pack_chores_ = query_chores_ + (packed_ / kTileStep - first_step_) * pieces();
    if (left_ != kNone && !apart_ && (now.panel - left_) % kOutSlots == 0) complete_left();
    chores_ = pack_chores_ + (left_ != kNone ? kSides * (u.head_dim_v / kWords) : 0);
    chore_ = tick_ = credit_ = 0;
    calls_ = blocks * now.steps;
    for (int64_t i = 0; i < kAhead && i < chores_; ++i) ask_for(i, 0, kTicks);
  }

  // Beside a step of the visit's values: its share of asking and of chores.
  inline __attribute__((always_inline)) void tick() {
    if (chore_ == chores_) return;
    credit_ += chores_ * kTicks;
    while (credit_ >= calls_ && chore_ < chores_) {
      credit_ -= calls_;
      if (chore_ + kAhead < chores_) ask_for(chore_ + kAhead, tick_, 1);
      if (++tick_ == kTicks) work();
    }
  }

  // What is left of them, after the values.
  void close() {
    while (chore_ < chores_) work();
  }

  // A panel that has met all of its keys.
  void leave(int64_t panel) {
    if (out_in_chores_) {
      left_ = panel;
    } else {
      complete(panel);
    }
  }

  void complete_left() {
    if (left_ != kNone) complete(left_);
    left_ = kNone;
  }

  __attribute__((noinline)) void complete(int64_t panel) const {
    if (!u.normalize) state_.settle(panel);
    if (!finish_) return;
    const int64_t begin = panel * kTileLanes, end = begin + kTileLanes;
    write_rows<float>(u, state_.block(panel), begin, end < u.count ? end : u.count);
  }

 private:
  static constexpr int64_t kNone = -1, kAhead = 12, kTicks = 4;
  static constexpr int64_t kElement = kElementBytes<kParts>, kChunkBytes = kTileStep * kElement;

  const TileState<kParts>& state_;
  const bool apart_, finish_, out_in_chores_;
  int64_t tile_begin_ = 0, tile_keys_ = 0, tile_steps_ = 0;
  int64_t packed_ = 0;             // rows of the tile, whole steps
  int64_t queries_ready_ = kNone;  // of panels up to this one, where they begin in this tile
  int64_t left_ = kNone;           // the panel whose out is to be written

  // Chores in their order: queries of panel coming_, K and V from first_step_ on, out of panel left_.
  int64_t chore_ = 0, chores_ = 0, query_chores_ = 0, pack_chores_ = 0, first_step_ = 0, coming_ = kNone;
  int64_t calls_ = 1, credit_ = 0, tick_ = 0;

  char* keys() const { return static_cast<char*>(u.scratch.k); }
  char* values() const { return static_cast<char*>(u.scratch.v); }
  int64_t pieces() const { return chunks + 2 * blocks; }  // of a step of K and V: chunks of K, halves of V's blocks
  auto query_row(int64_t panel) const {
    return [rows = state_.rows(panel)](int64_t l) { return rows[l].q; };
  }

  __attribute__((noinline)) void work() {
    const int64_t i = chore_ - query_chores_;
    if (i < 0) {
      pack_query_tile<kParts>(query_row(coming_), chore_ / kSides, chore_ % kSides, u.head_dim, queries(coming_));
    } else if (chore_ < pack_chores_) {
      pack_piece(first_step_ + i / pieces(), i % pieces());
    } else {
      write_block(chore_ - pack_chores_);
      if (chore_ + 1 == chores_) left_ = kNone;
    }
    ++chore_;
    tick_ = 0;
  }

  void pack_piece(int64_t step, int64_t piece) const {
    const int64_t half = piece - chunks;
    with_rows(u, tile_begin_, [&](auto k_row, auto v_row) {
      if (half < 0) {
        pack_key_chunk<kParts>(k_row, step, piece, tile_keys_, u.head_dim, keys());
      } else if (half % 2 == 0) {
        pack_value_half<kParts, 0>(v_row, step, half / 2, tile_keys_, u.head_dim_v, values(), tile_steps_);
      } else {
        pack_value_half<kParts, 1>(v_row, step, half / 2, tile_keys_, u.head_dim_v, values(), tile_steps_);
      }
    });
  }

  // 16 rows by 16 columns of out: the first row, and the first column.
  int64_t out_row(int64_t i) const { return left_ * kTileLanes + i / (u.head_dim_v / kWords) * kWords; }
  int64_t out_column(int64_t i) const { return i % (u.head_dim_v / kWords) * kWords; }
  int64_t out_rows(int64_t first) const { return u.count - first < kWords ? u.count - first : kWords; }

  void write_block(int64_t i) const {
    const int64_t first = out_row(i), d = out_column(i), rows = out_rows(first);
    const Vec<float> sum = load<Vec<float>>(static_cast<const float*>(u.state.sum) + first), one = broadcast<float>(1);
    const Vec<float> factor = one / (sum == Vec<float>{} ? one : sum);
    const float* from = state_.out(left_) + d * kTileLanes + first % kTileLanes;
    Vec<float> x[kWords];
#pragma GCC unroll 16
    for (int e = 0; e < kWords; ++e) x[e] = load<Vec<float>>(from + e * kTileLanes) * factor;
    transpose<float>(x);
    for (int64_t l = 0; l < rows; ++l) store_as<float, typename PartFormat<kParts>::type>(u.rows[first + l].out + d * kElement, x[l]);
  }

  // What a chore reads or writes of memory: from part `tick` of kTicks on, as many parts. Rows may begin anywhere in a line: the last
  // piece of a row asks for one more.
  __attribute__((noinline)) void ask_for(int64_t chore, int64_t tick, int64_t ticks) const {
    const auto ask = [=](auto row_at, int64_t rows, int64_t offset, int64_t bytes, bool last) {
      const int64_t part = (rows + kTicks - 1) / kTicks, end = (tick + ticks) * part;
      for (int64_t l = tick * part; l < end && l < rows; ++l) ask_lines(row_at(l) + offset, (bytes + kLine - 1) / kLine + last);
    };
    const int64_t i = chore - query_chores_;
    if (i < 0) {
      const auto row = query_row(coming_);
      ask([&](int64_t l) { return row(chore % kSides * kWords + l); }, kWords, chore / kSides * kChunkBytes, kChunkBytes,
          chore / kSides + 1 == chunks);
    } else if (chore < pack_chores_) {
      const int64_t first = (first_step_ + i / pieces()) * kTileStep, piece = i % pieces(), half = piece - chunks;
      const int64_t rows = tile_keys_ - first < kTileStep ? tile_keys_ - first : kTileStep;
      with_rows(u, tile_begin_, [&](auto k_row, auto v_row) {
        if (half < 0) ask([&](int64_t l) { return k_row(first + l); }, rows, piece * kChunkBytes, kChunkBytes, piece + 1 == chunks);
        if (half >= 0 && half % 2 == 0)
          ask([&](int64_t l) { return v_row(first + l); }, rows, half / 2 * kChunkBytes, kChunkBytes, half / 2 + 1 == blocks);
      });
    } else {
      const int64_t block = chore - pack_chores_, first = out_row(block);
      ask([from = u.rows + first](int64_t l) { return from[l].out; }, out_rows(first), out_column(block) * kElement, kWords * kElement,
          out_column(block) + kWords == u.head_dim_v);
    }
  }
};

}  // namespace attile::ATTILE_ISA
