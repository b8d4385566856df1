#include "cuda/mla/pieces.hpp"

#include <algorithm>

#include "cuda/mla/piece_bytes.hpp"

namespace attile::cuda {
namespace {

constexpr int64_t kRowAlignment = 16, kArrayAlignment = 256;

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Of a row of `dim` elements, in elements.
int64_t row_stride(DType dtype, int64_t dim) {
  const int64_t size = static_cast<int64_t>(size_of(dtype));
  return round_up(dim * size, kRowAlignment) / size;
}

Sequences cut(Sequences s, int64_t first, int64_t count) {
  if (s.packed) return s;
  s.batch = count;
  if (s.cu) {
    s.cu.data += first * s.cu.stride * static_cast<int64_t>(size_of(s.cu.dtype));
    s.cu.size = count + 1;
  }
  return s;
}

// Query heads of a head of the inner problem.
int64_t group_of(const AttentionProblem& p, Form form) { return absorbs(form) || p.latents.rope_by_head ? 1 : p.group; }

bool joins_keys(const AttentionProblem& p) { return p.latents.rope_dim > 0 && !latents_are_keys(p); }

}  // namespace

View take(char*& at, DType dtype, int64_t batch, int64_t rows, int64_t heads, int64_t dim) {
  View v;
  v.data = at;
  v.dtype = dtype;
  const int64_t row = row_stride(dtype, dim);
  const int64_t shape[] = {batch, rows, heads, dim}, stride[] = {rows * row, row, batch * rows * row, 1};
  std::copy_n(shape, 4, v.shape);
  std::copy_n(stride, 4, v.stride);
  at += round_up(heads * batch * rows * row * static_cast<int64_t>(size_of(dtype)), kArrayAlignment);
  return v;
}

// Token by token, as mla_decode's kernels want their rows.
static View take_tokens(char*& at, DType dtype, int64_t batch, int64_t rows, int64_t heads, int64_t dim) {
  View v = take(at, dtype, batch, rows, heads, dim);
  const int64_t row = v.stride[1], stride[] = {rows * heads * row, heads * row, row, 1};
  std::copy_n(stride, 4, v.stride);
  return v;
}

View cut(View v, int dim, int64_t first, int64_t count) {
  if (!v) return v;
  v.data += first * v.stride[dim] * static_cast<int64_t>(size_of(v.dtype));
  v.shape[dim] = count;
  return v;
}

int64_t inner_heads(const AttentionProblem& p, Form form) { return absorbs(form) || p.latents.rope_by_head ? p.heads_q : p.heads_k; }

bool latents_are_keys(const AttentionProblem& p) {
  const View &latent = p.latents.latent, &rope = p.latents.k_rope;
  if (p.latents.rope_by_head || rope.data != latent.at(0, 0, 0, p.latents.rank)) return false;
  return (latent.shape[0] < 2 || latent.stride[0] == rope.stride[0]) && (latent.shape[1] < 2 || latent.stride[1] == rope.stride[1]);
}

Pieces pieces_of(const AttentionProblem& p, Form form) {
  const int64_t heads = inner_heads(p, form), batches = p.q.shape[0];
  const auto bytes = [&](int64_t batch, int64_t count) {
    return std::max<int64_t>(1, static_cast<int64_t>(stored_in(p, form, {0, batch, 0, count}, nullptr).bytes));
  };
  const auto most = [](int64_t all, int64_t each) {  // as many as fit, shared evenly
    if (all == 0) return int64_t{1};
    const int64_t fit = std::clamp<int64_t>(kPieceBytes / each, 1, all), count = (all + fit - 1) / fit;
    return (all + count - 1) / count;
  };
  const int64_t of_batch = most(batches, bytes(1, 1));
  const int64_t of_heads = of_batch < batches ? 1 : most(heads, bytes(batches, 1));
  return {of_batch, of_heads, batches, heads};
}

Stored stored_in(const AttentionProblem& p, Form form, const Piece& piece, char* workspace) {
  const Latents& latents = p.latents;
  const int64_t tokens_q = p.q.shape[1], tokens_k = latents.latent.shape[1], n = piece.heads;
  char* at = workspace;
  Stored s{};
  if (form == Form::decode) {
    s.q = take_tokens(at, p.dtype, piece.batches, tokens_q, n, latents.rank);
    s.out = take_tokens(at, p.dtype, piece.batches, tokens_q, n, latents.rank);
  } else if (form != Form::absorb) {
    s.k = take(at, p.dtype, piece.batches, tokens_k, n, p.head_dim);
    s.v = take(at, p.dtype, piece.batches, tokens_k, n, p.head_dim_v);
    if (form == Form::gradients) {
      s.dk = take(at, p.dtype, piece.batches, tokens_k, n, p.head_dim);
      s.dv = take(at, p.dtype, piece.batches, tokens_k, n, p.head_dim_v);
    }
    if (latents.q_rope) {
      const int64_t heads = n * group_of(p, form);
      s.q = take(at, p.dtype, piece.batches, tokens_q, heads, p.head_dim);
      if (form == Form::gradients) s.dq = take(at, p.dtype, piece.batches, tokens_q, heads, p.head_dim);
    }
  } else {
    if (joins_keys(p)) s.k = take(at, p.dtype, piece.batches, tokens_k, latents.rope_by_head ? n : 1, latents.rank + latents.rope_dim);
    s.q = take(at, p.dtype, piece.batches, tokens_q, n, latents.rank + latents.rope_dim);
    s.out = take(at, p.dtype, piece.batches, tokens_q, n, latents.rank);
  }
  s.bytes = static_cast<size_t>(at - workspace);
  return s;
}

View part_of(View array, const Piece& piece, int64_t first_head, int64_t heads) {
  return cut(cut(array, 0, piece.batch, piece.batches), 2, first_head, heads);
}

View columns_of(View array, int64_t first, int64_t count) { return cut(array, 3, first, count); }

AttentionProblem inner_problem(const AttentionProblem& p, Form form, const Piece& piece, const Stored& stored) {
  const Latents& latents = p.latents;
  const int64_t group = group_of(p, form), head = piece.head * group, heads = piece.heads * group;
  AttentionProblem inner = p;
  inner.options &= ~uint64_t{kLatents};
  inner.latents = {};
  inner.q = stored.q ? stored.q : part_of(p.q, piece, head, heads);
  if (!absorbs(form)) {
    inner.k = stored.k;
    inner.v = stored.v;
    inner.heads_k = piece.heads;
    inner.out = part_of(p.out, piece, head, heads);
  } else {
    const View latent = cut(latents.latent, 0, piece.batch, piece.batches);
    inner.head_dim = latents.rank + latents.rope_dim;
    inner.head_dim_v = latents.rank;
    inner.k = form == Form::decode ? latent : stored.k ? stored.k : columns_of(latent, 0, inner.head_dim);
    inner.v = latent;
    inner.v.shape[2] = inner.heads_k = latents.rope_by_head && form == Form::absorb ? piece.heads : 1;
    inner.out = stored.out;
  }
  inner.heads_q = heads;
  inner.group = heads / inner.heads_k;
  inner.lse = cut(cut(p.lse, 0, piece.batch, piece.batches), 1, head, heads);
  inner.sinks = cut(p.sinks, 2, head, heads);
  inner.q_seqs = cut(p.q_seqs, piece.batch, piece.batches);
  inner.k_seqs = cut(p.k_seqs, piece.batch, piece.batches);
  inner.batch = inner.q_seqs.batch;
  // A packed batch axis is one row of tokens, but a bias has every sequence.
  const int64_t sequence = p.q_seqs.packed ? 0 : piece.batch;
  inner.bias = cut(cut(p.bias, 0, sequence, inner.batch), 1, head, heads);
  inner.attention_mask = cut(cut(p.attention_mask, 0, sequence, inner.batch), 1, head, heads);
  inner.dropout.first_sequence = static_cast<int32_t>(piece.batch);
  inner.dropout.first_head = static_cast<int32_t>(head);
  return inner;
}

MlaDecodeProblem decode_problem(const AttentionProblem& p, const AttentionProblem& inner, const Piece& piece) {
  const Latents& latents = p.latents;
  MlaDecodeProblem d;
  static_cast<AttentionProblem&>(d) = inner;
  d.latent = latents.rank;
  d.rope = latents.rope_dim;
  d.head_rope = latents.rope_by_head;
  if (d.rope > 0) {
    d.q_pe = latents.q_rope ? part_of(latents.q_rope, piece, piece.head, piece.heads)
                            : columns_of(part_of(p.q, piece, piece.head, piece.heads), latents.nope_dim, d.rope);
    d.kpe = part_of(latents.k_rope, piece, latents.rope_by_head ? piece.head : 0, latents.rope_by_head ? piece.heads : 1);
  }
  d.alignment = Alignment::bottom_right;
  d.options &= ~uint64_t{kWindow};
  return d;
}

}  // namespace attile::cuda
