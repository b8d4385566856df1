// What panels of rows need beside their products: their queries, and K and V of the tile as far as they are the first to see it, packed;
// their out written. It is done in chores of some 130 instructions beside the dots of another panel's values, where the vectors are idle:
//
//   beside the values of panel n:  queries of panel n + 2, K and V of the tile up to its last key; out of panel n - 1
//
// On a causal diagonal that is 32 rows of each of Q, K, V and out a panel, 32 KB of memory and some 2000 shuffles, against 500 dots and
// more. Chores are spread evenly over the panel's steps. Nothing is asked for ahead: a chore's loads do not wait for one another, and
// lines on their way to L2 would take the buffers that the tiles' own loads need. Rows are read whole, for rows that lie a power of two
// apart have few places in a cache, where a line that came with its neighbour would not stay until its turn.
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
        out_in_chores_(finish && u.normalize && u.rows[0].lse == nullptr && u.head_dim_v % kWords == 0),
        out_columns_(kParts == 1 && u.head_dim_v % kTileStep == 0 ? kTileStep : kWords) {}

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
    const int64_t needed = visit.first + visit.steps * kTileStep;
    for (; packed_ < needed; packed_ += kTileStep) {
      const int64_t step = packed_ / kTileStep;
      for (int64_t piece = 0; piece < pieces(); ++piece) {
        if (packed_ + kTileStep < needed) ask_for_piece(step + 1, piece);
        pack_piece(step, piece);
      }
    }
  }

  // The chores beside a visit's values; null: there is no such visit in this tile.
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
    chores_ = pack_chores_ + (left_ != kNone ? kSides * (u.head_dim_v / out_columns_) : 0);
    chore_ = credit_ = 0;
    calls_ = blocks * now.steps;
  }

  // Beside a step of the visit's values: its share of the chores.
  inline __attribute__((always_inline)) void tick() {
    credit_ += chores_;
    while (credit_ >= calls_ && chore_ < chores_) {
      credit_ -= calls_;
      work();
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
  static constexpr int64_t kNone = -1;
  static constexpr int64_t kElement = kElementBytes<kParts>;

  const TileState<kParts>& state_;
  const bool apart_, finish_, out_in_chores_;
  const int64_t out_columns_;  // that a chore writes
  int64_t tile_begin_ = 0, tile_keys_ = 0, tile_steps_ = 0;
  int64_t packed_ = 0;             // rows of the tile, whole steps
  int64_t queries_ready_ = kNone;  // of panels up to this one, where they begin in this tile
  int64_t left_ = kNone;           // the panel whose out is to be written

  // Chores in their order: queries of panel coming_, K and V from first_step_ on, out of panel left_.
  int64_t chore_ = 0, chores_ = 0, query_chores_ = 0, pack_chores_ = 0, first_step_ = 0, coming_ = kNone;
  int64_t calls_ = 1, credit_ = 0;

  char* keys() const { return static_cast<char*>(u.scratch.k); }
  char* values() const { return static_cast<char*>(u.scratch.v); }
  int64_t pieces() const { return 2 * kRowPieces + blocks; }  // of a step: rows of K, rows of V, blocks of V's columns
  auto query_row(int64_t panel) const {
    return [rows = state_.rows(panel)](int64_t l) { return rows[l].q; };
  }

  __attribute__((noinline)) void work() {
    const int64_t i = chore_ - query_chores_;
    if (i < 0) {
      pack_query_tile<kParts>(query_row(coming_), chore_ % chunks, chore_ / chunks, u.head_dim, queries(coming_));
    } else if (chore_ < pack_chores_) {
      pack_piece(first_step_ + i / pieces(), i % pieces());
    } else {
      write_block(chore_ - pack_chores_);
      if (chore_ + 1 == chores_) left_ = kNone;
    }
    ++chore_;
  }

  void pack_piece(int64_t step, int64_t piece) const {
    with_rows(u, tile_begin_, [&](auto k_row, auto v_row) {
      if (piece < kRowPieces) {
        pack_key_rows<kParts>(k_row, step, piece, tile_keys_, u.head_dim, keys());
      } else if (piece < 2 * kRowPieces) {
        stage_value_rows<kParts>(v_row, step, piece - kRowPieces, tile_keys_, u.head_dim_v, values(), tile_steps_);
      } else {
        transpose_values<kParts>(step, piece - 2 * kRowPieces, values(), tile_steps_);
      }
    });
  }

  void ask_for_piece(int64_t step, int64_t piece) const {
    if (piece >= 2 * kRowPieces) return;
    const int64_t first = step * kTileStep + piece % kRowPieces * kPieceRows,
                  end = first + kPieceRows < tile_keys_ ? first + kPieceRows : tile_keys_;
    with_rows(u, tile_begin_, [&](auto k_row, auto v_row) {
      piece < kRowPieces ? prefetch_rows(k_row, first, end, u.head_dim * kElement)
                         : prefetch_rows(v_row, first, end, u.head_dim_v * kElement);
    });
  }

  // 16 rows by 16 columns of out from column d on, transposed.
  inline __attribute__((always_inline)) void read_block(int64_t first, int64_t d, Vec<float> factor, Vec<float> (&x)[kWords]) const {
    const float* from = state_.out(left_) + d * kTileLanes + first % kTileLanes;
#pragma GCC unroll 16
    for (int e = 0; e < kWords; ++e) x[e] = load<Vec<float>>(from + e * kTileLanes) * factor;
    transpose<float>(x);
  }

  // 16 rows by out_columns_. Whole lines of an out that no cache keeps are written past the caches, which then read nothing before.
  void write_block(int64_t i) const {
    const int64_t a_side = u.head_dim_v / out_columns_, first = left_ * kTileLanes + i / a_side * kWords, d = i % a_side * out_columns_;
    const int64_t rows = u.count - first < kWords ? u.count - first : kWords;
    const Vec<float> factor = out_factor<float>(load<Vec<float>>(static_cast<const float*>(u.state.sum) + first));
    const QueryRow* to = u.rows + first;
    Vec<float> x[kWords];
    read_block(first, d, factor, x);
    if (out_columns_ == kWords) {
      for (int64_t l = 0; l < rows; ++l) store_as<float, typename PartFormat<kParts>::type>(to[l].out + d * kElement, x[l]);
      return;
    }
    Vec<float> next[kWords];
    read_block(first, d + kWords, factor, next);
    for (int64_t l = 0; l < rows; ++l) {
      char* at = to[l].out + d * kElement;
      const Halves line = make_halves(x[l], next[l]);
      if (u.out_is_large && reinterpret_cast<uintptr_t>(at) % kLine == 0) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(at), (__m512i)line);
      } else {
        store(at, line);
      }
    }
  }
};

}  // namespace attile::ATTILE_ISA
