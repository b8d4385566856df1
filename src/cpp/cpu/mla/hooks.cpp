// What rebuilding and absorbing share.
#include "cpu/mla/strategies.hpp"

namespace attile {
namespace {

int64_t bytes_of(DType t) { return static_cast<int64_t>(size_of(t)); }

// A problem without latents: its keys come from a maker.
AttentionProblem plain(const AttentionProblem& p) {
  AttentionProblem inner = p;
  inner.options &= ~uint64_t{kLatents};
  inner.latents = {};
  return inner;
}

}  // namespace

AttentionProblem rebuilt_problem(const AttentionProblem& p) {
  AttentionProblem inner = plain(p);
  if (p.latents.rope_by_head) {
    inner.heads_k = p.heads_q;
    inner.group = 1;
  }
  return inner;
}

AttentionProblem absorbed_problem(const AttentionProblem& p) {
  AttentionProblem inner = plain(p);
  inner.heads_k = p.latents.rope_by_head || p.heads_q == 0 ? p.heads_q : 1;
  inner.group = p.latents.rope_by_head || p.heads_q == 0 ? 1 : p.heads_q;
  inner.head_dim = p.latents.rank + p.latents.rope_dim;
  inner.head_dim_v = p.latents.rank;
  return inner;
}

MlaHooks::MlaHooks(const AttentionProblem& problem, const MlaIsa& isa_of)
    : p(problem),
      latents(problem.latents),
      isa(isa_of),
      size(bytes_of(problem.dtype)),
      rope_bytes(problem.latents.rope_dim * size),
      accumulator(problem.dtype == DType::f64 ? 1 : 0) {}

WeightSlice MlaHooks::w_kc(int64_t head) const {
  return {latents.w_kc.at(0, 0, head), latents.w_kc.stride[1] * size, size, latents.rank, latents.nope_dim, p.dtype};
}
WeightSlice MlaHooks::w_vc(int64_t head) const {
  return {latents.w_vc.at(0, 0, head), latents.w_vc.stride[1] * size, size, latents.rank, p.head_dim_v, p.dtype};
}
WeightSlice MlaHooks::w_kc_transposed(int64_t head) const {
  return {latents.w_kc.at(0, 0, head), size, latents.w_kc.stride[1] * size, latents.nope_dim, latents.rank, p.dtype};
}

size_t MlaHooks::weight_bytes(int64_t depth, int64_t columns) const {
  if (isa.forward->tile_parts > 0) return tile_bytes(columns, depth);
  const int64_t panel = kPanelVectors * isa.forward->vector_bytes;
  const int64_t lanes = panel / (p.dtype == DType::f64 ? 8 : 4);
  return whole_lines((columns + lanes - 1) / lanes * (depth / isa.pair) * panel);
}
size_t MlaHooks::rows_bytes(int64_t rows, int64_t depth) const {
  if (isa.forward->tile_parts > 0) return tile_bytes(rows, depth);
  const int64_t words = (depth / isa.pair + kChunk - 1) / kChunk * kChunk;
  return whole_lines(words * (rows + isa.forward->block_step) * (p.dtype == DType::f64 ? 8 : 4));
}
size_t MlaHooks::product_bytes(int64_t rows) const {
  if (isa.forward->tile_parts > 0) return (rows + 31) / 32 * 32 * 32 * 4;
  return whole_lines((rows + isa.forward->block_step) * kPanelVectors * isa.forward->vector_bytes);
}
// Of either operand: rows or columns, and the depth, in steps of 32.
size_t MlaHooks::tile_bytes(int64_t rows, int64_t depth) const {
  return (rows + 31) / 32 * 32 * ((depth + 31) / 32 * 32) * 2 * isa.forward->tile_parts;
}

ProjectionRows MlaHooks::latents_of(const ForwardItem& item) const {
  const View& v = latents.latent;
  return {v.at(p.k_seqs.batch_index(item.sequence), p.k_seqs.first_row(item.sequence), 0), v.stride[1] * size,
          p.k_seqs.length(item.sequence)};
}
ProjectionRows MlaHooks::rope_keys_of(const ForwardItem& item, int64_t h) const {
  const View& v = latents.k_rope;
  return {v.at(p.k_seqs.batch_index(item.sequence), p.k_seqs.first_row(item.sequence), h), v.stride[1] * size,
          p.k_seqs.length(item.sequence)};
}

const char* MlaHooks::rope_query(const ForwardItem& item, int64_t i, int64_t h) const {
  const int64_t b = p.q_seqs.batch_index(item.sequence), row = p.q_seqs.first_row(item.sequence) + i;
  return latents.q_rope ? latents.q_rope.at(b, row, h) : p.q.at(b, row, h, latents.nope_dim);
}

}  // namespace attile
