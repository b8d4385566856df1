// The products around the attention of a piece, queued.
#pragma once

#include <initializer_list>

#include "core/backward_problem.hpp"
#include "cuda/mla/pieces.hpp"
#include "cuda/mla/project_params.hpp"

namespace attile::cuda {

struct Made {
  View weight, rows;  // [1, rank, heads, dim]; what is made, [batch, token, head, dim]
};

// rows[b, t, h] = a[b, t, h] @ weight[head of h]. A piece's head h has the weights of head (first + h) / group.
void project(const AttentionProblem& inner, const View& a, std::initializer_list<Made> made, int64_t first, int64_t group, bool transposed,
             generic::LiveRows live, void* stream);

// Keys, values, and queries that lie in two arrays, of the problem's piece.
void rebuild(const AttentionProblem& p, const Piece& piece, const Stored& stored, const AttentionProblem& inner, void* stream);

// Adds what the piece's stored.dk and stored.dv say of latents and weights to float32 sums of their shapes.
void add_gradients(const AttentionProblem& p, const Piece& piece, const Stored& stored, const AttentionProblem& inner,
                   const LatentGradients& sums, void* stream);

}  // namespace attile::cuda
