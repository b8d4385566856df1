// A problem of mla_attention as plain attention, piece by piece. A piece is some heads of some sequences, as many as a workspace of bounded
// size holds, so that keys and values (rebuild), or queries and results among latents (absorb), are never stored whole.
#pragma once

#include <algorithm>

#include "core/kernel_table.hpp"
#include "core/problem.hpp"

namespace attile::cuda {

// Rebuild: the heads of the inner problem are the key heads, or the query heads where each has its rope key. Absorb: the query heads.
struct Piece {
  int64_t batch, batches;  // of the batch axis
  int64_t head, heads;
};

struct Pieces {
  int64_t batches, heads;  // of a whole piece; the last ones may be smaller
  int64_t batch_axis, all_heads;

  bool empty() const { return batch_axis == 0 || all_heads == 0; }
  // f(piece, whether it begins new sequences)
  template <class F>
  void each(F f) const {
    for (int64_t b = 0; b < batch_axis; b += batches)
      for (int64_t h = 0; h < all_heads; h += heads)
        f(Piece{b, std::min(batches, batch_axis - b), h, std::min(heads, all_heads - h)}, h == 0);
  }
};

// What a piece stores: arrays [batches, rows, heads, dim] whose rows begin at multiples of 16 bytes; absent ones have no dtype.
struct Stored {
  View k, v, q, out;
  size_t bytes;  // of all; what follows is the attention kernel's
};

// Heads of the inner problem.
int64_t inner_heads(const AttentionProblem& problem, MlaStrategy strategy);
// Whether latents and rope keys lie side by side already, so that a row of both is a key.
bool latents_are_keys(const AttentionProblem& problem);

Pieces pieces_of(const AttentionProblem& problem, MlaStrategy strategy);
Stored stored_in(const AttentionProblem& problem, MlaStrategy strategy, const Piece& piece, char* workspace);

// The attention that is left: keys, values and queries made or given; its out is the problem's (rebuild) or the stored one (absorb).
AttentionProblem inner_problem(const AttentionProblem& problem, MlaStrategy strategy, const Piece& piece, const Stored& stored);

// Part of an array of [batch, token, head, dim], the batch and heads of the piece.
View part_of(View array, const Piece& piece, int64_t first_head, int64_t heads);
// Elements [first, first + count) of the last dimension.
View columns_of(View array, int64_t first, int64_t count);

}  // namespace attile::cuda
