#include "cuda/mla/products.hpp"

#include "cuda/generic/problem_params.hpp"
#include "cuda/mla/copy_rows.hpp"
#include "cuda/mla/gradient_params.hpp"

namespace attile::cuda {

using namespace generic;

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Living living_of(const AttentionProblem& inner, LiveRows live) {
  const ForwardParams f = problem_params(inner);
  return {live, f.q_lengths, f.k_lengths, f.batch, f.left, f.right, f.bottom_right};
}

// Query heads of a key head, as heads of the piece count.
int64_t group_of(const AttentionProblem& p) { return p.latents.rope_by_head ? p.group : 1; }

}  // namespace

void project(const AttentionProblem& inner, const View& a, std::initializer_list<Made> made, int64_t first, int64_t group, bool transposed,
             LiveRows live, void* stream) {
  const ProjectInstance instance = inner.dtype == DType::bf16  ? project_bf16(transposed)
                                   : inner.dtype == DType::f16 ? project_f16(transposed)
                                                               : project_f32(transposed);
  ProjectParams p{};
  p.a = tensor_of(a);
  p.batch = static_cast<int32_t>(a.shape[0]);
  p.rows = static_cast<int32_t>(a.shape[1]);
  p.depth = static_cast<int32_t>(a.shape[3]);
  p.first_head = static_cast<int32_t>(first);
  p.group = static_cast<int32_t>(group);
  p.living = living_of(inner, live);
  int count = 0;
  for (const Made& m : made) {
    const int64_t columns = m.rows.shape[3], tiles = ceil_div(columns, instance.tile_n);
    const Tensor weight = tensor_of(m.weight);
    p.projections[count++] = {weight.data,
                              weight.head,
                              weight.row,
                              weight.granule,
                              tensor_of(m.rows),
                              static_cast<int32_t>(columns),
                              static_cast<int32_t>(tiles)};
    p.heads = static_cast<int32_t>(m.rows.shape[2]);
    p.column_tiles += static_cast<int32_t>(tiles);
  }
  const int64_t blocks = ceil_div(a.shape[0] * a.shape[1], instance.tile_m) * p.heads * p.column_tiles;
  if (blocks > 0) instance.launch(p, blocks, stream);
}

void rebuild(const AttentionProblem& p, const Piece& piece, const Stored& stored, const AttentionProblem& inner, void* stream) {
  const Latents& latents = p.latents;
  const int64_t group = group_of(p);
  project(inner, part_of(latents.latent, piece, 0, 1),
          {{latents.w_kc, columns_of(stored.k, 0, latents.nope_dim)}, {latents.w_vc, stored.v}}, piece.head, group, false, LiveRows::keys,
          stream);
  const int64_t head = inner.dropout.first_head;
  if (latents.rope_dim > 0)
    copy_rows(part_of(latents.k_rope, piece, latents.rope_by_head ? head : 0, piece.heads),
              columns_of(stored.k, latents.nope_dim, latents.rope_dim), stream);
  if (latents.q_rope) {
    copy_rows(part_of(p.q, piece, head, inner.heads_q), columns_of(stored.q, 0, latents.nope_dim), stream);
    copy_rows(part_of(latents.q_rope, piece, head, inner.heads_q), columns_of(stored.q, latents.nope_dim, latents.rope_dim), stream);
  }
}

void add_gradients(const AttentionProblem& p, const Piece& piece, const Stored& stored, const AttentionProblem& inner,
                   const LatentGradients& sums, void* stream) {
  const GradientInstance instance = p.dtype == DType::bf16 ? gradient_bf16() : p.dtype == DType::f16 ? gradient_f16() : gradient_f32();
  const Latents& latents = p.latents;
  const View latent = part_of(latents.latent, piece, 0, 1);
  GradientParams g{};
  g.of[0] = {tensor_of(stored.dk), tensor_of(latents.w_kc), tensor_of(sums.w_kc), static_cast<int32_t>(latents.nope_dim)};
  g.of[1] = {tensor_of(stored.dv), tensor_of(latents.w_vc), tensor_of(sums.w_vc), static_cast<int32_t>(p.head_dim_v)};
  g.latent = tensor_of(latent);
  g.latent_sums = tensor_of(part_of(sums.latent, piece, 0, 1));
  g.batch = static_cast<int32_t>(latent.shape[0]);
  g.rows = static_cast<int32_t>(latent.shape[1]);
  g.rank = static_cast<int32_t>(latents.rank);
  g.heads = static_cast<int32_t>(piece.heads);
  g.first_head = static_cast<int32_t>(piece.head);
  g.group = static_cast<int32_t>(group_of(p));
  g.first_tiles = static_cast<int32_t>(ceil_div(latents.nope_dim, instance.tile_n));
  g.column_tiles = g.first_tiles + static_cast<int32_t>(ceil_div(p.head_dim_v, instance.tile_n));
  g.living = living_of(inner, LiveRows::keys);
  const int64_t tokens = latent.shape[0] * latent.shape[1];
  if (tokens == 0) return;
  instance.latents(g, ceil_div(tokens, instance.tile_m) * ceil_div(latents.rank, instance.tile_n), stream);
  const int64_t weights = (piece.head + piece.heads - 1) / group_of(p) - piece.head / group_of(p) + 1;
  instance.weights(g, ceil_div(latents.rank, instance.tile_m) * g.column_tiles * weights, stream);
}

}  // namespace attile::cuda
