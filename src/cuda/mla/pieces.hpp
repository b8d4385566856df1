// A problem of mla_attention as plain attention, piece by piece. A piece is some heads of some sequences, as many as a workspace of bounded
// size holds, so that keys and values (rebuild), or queries and results among latents (absorb), are never stored whole.
#pragma once

#include <algorithm>
#include <span>
#include <string>

#include "core/kernel_table.hpp"
#include "core/mla_decode_problem.hpp"
#include "core/problem.hpp"

namespace attile::cuda {

// What a piece is computed by: keys and values made again, the same with their gradients, or queries absorbed, for the forward kernels, which want
// latents and rope keys side by side, or for those of mla_decode, which take them as they are.
enum class Form : uint8_t { rebuild, gradients, absorb, decode };

inline bool absorbs(Form form) { return form == Form::absorb || form == Form::decode; }

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
  View dk, dv, dq;  // of gradients
  size_t bytes;     // of all; what follows is the attention kernel's
};

// Heads of the inner problem.
int64_t inner_heads(const AttentionProblem& problem, Form form);
// Whether latents and rope keys lie side by side already, so that a row of both is a key.
bool latents_are_keys(const AttentionProblem& problem);

Pieces pieces_of(const AttentionProblem& problem, Form form);
Stored stored_in(const AttentionProblem& problem, Form form, const Piece& piece, char* workspace);
// [batch, rows, heads, dim], head by head, rows at multiples of 16 bytes, at the next 256 bytes of the workspace.
View take(char*& at, DType dtype, int64_t batch, int64_t rows, int64_t heads, int64_t dim);

// The attention that is left: keys, values and queries made or given; its out is the problem's (rebuild) or the stored one (absorbed).
AttentionProblem inner_problem(const AttentionProblem& problem, Form form, const Piece& piece, const Stored& stored);
// The same as one of mla_decode.
MlaDecodeProblem decode_problem(const AttentionProblem& problem, const AttentionProblem& inner, const Piece& piece);

// f(piece, its arrays, the attention that is left, whether it begins new sequences). workspace: null while planning, when only sizes and
// alignment count.
template <class F>
void each_piece(const AttentionProblem& p, Form form, char* workspace, F f) {
  const Pieces pieces = pieces_of(p, form);
  if (pieces.empty() || p.heads_q == 0 || p.q.shape[1] == 0) return;
  pieces.each([&](const Piece& piece, bool new_sequences) {
    const Stored stored = stored_in(p, form, piece, workspace);
    f(piece, stored, inner_problem(p, form, piece, stored), new_sequences);
  });
}

// The first kernel of a table that takes every piece; null with the last one's reason. A kernel that is right for the first piece is right for
// smaller ones: named, it does not refuse them for their size. each(f) calls f(the problem of a piece).
template <class Each>
const Kernel* kernel_of_pieces(std::span<const Kernel> table, const AttentionProblem& p, const Config& config, std::string& why,
                               Each each) {
  why = "no kernel takes its options";
  for (const Kernel& kernel : table) {
    if (!kernel.available() || (p.options & ~uint64_t{kLatents} & ~kernel.honours) != 0) continue;
    Config own{config.block_q, config.block_k, config.num_splits, {}, MlaStrategy::none};
    std::string refused;
    each([&](const AttentionProblem& inner) {
      if (refused.empty()) refused = kernel.why_not(inner, own);
      own.kernel = kernel.name;
    });
    if (refused.empty()) return &kernel;
    why = refused;
  }
  return nullptr;
}

// Part of an array of [batch, token, head, dim], the batch and heads of the piece.
View cut(View array, int dim, int64_t first, int64_t count);  // elements [first, first + count) of a dimension
View part_of(View array, const Piece& piece, int64_t first_head, int64_t heads);
View columns_of(View array, int64_t first, int64_t count);

}  // namespace attile::cuda
