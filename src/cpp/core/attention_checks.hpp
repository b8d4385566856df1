// Checks of what whole-attention functions share: cumulative lengths, what broadcasts to [batch, heads_q, seqlen_q, seqlen_k], dropout.
#pragma once

#include <cmath>
#include <string>

#include "core/option_checks.hpp"
#include "core/problem.hpp"

namespace attile {

// Where the sequences of an array lie whose tokens are on axis `token`, with the batch before it, if it has one. cu (null: dense)
// cuts the array; without a batch axis it is packed.
inline Sequences checked_sequences(const char* f, const char* cu_name, const attile_tensor* cu, const char* name, const attile_tensor& x,
                                   int32_t token) {
  Sequences s;
  s.rows = x.shape[token];
  s.batch = token == 1 ? x.shape[0] : 1;
  s.longest = s.rows;
  if (!cu) return s;
  s.cu = index_view(f, cu_name, *cu);
  s.packed = token == 0;
  if (s.cu.size < 1) value_error(f, std::string(cu_name) + " must have at least one entry", "length batch + 1", s.cu.size);
  if (s.packed) s.batch = s.cu.size - 1;
  else if (s.cu.size != s.batch + 1) value_error(f, axis(cu_name, 0) + " must equal batch + 1", s.batch + 1, s.cu.size);
  if (s.cu.on_device) return s;  // the kernels read it, and clamp what they find
  if (s.cu[0] != 0) value_error(f, std::string(cu_name) + "[0] must be zero", int64_t{0}, s.cu[0]);
  s.longest = 0;
  for (int64_t b = 0; b < s.batch; ++b) {
    const std::string entry = std::string(cu_name) + "[" + std::to_string(b + 1) + "]";
    if (s.cu[b + 1] < s.cu[b]) value_error(f, entry + " must not decrease", "at least " + std::to_string(s.cu[b]), s.cu[b + 1]);
    if (!s.packed && s.length(b) > s.rows)
      value_error(f, entry + " makes a sequence longer than " + axis(name, 1), "a length of at most " + std::to_string(s.rows), s.length(b));
    s.longest = std::max(s.longest, s.length(b));
  }
  if (s.packed && s.cu[s.batch] > s.rows)
    value_error(f, std::string(cu_name) + "[-1] must be at most " + axis(name, 0), "at most " + std::to_string(s.rows), s.cu[s.batch]);
  return s;
}

// A bias or mask with zero strides where it is broadcast; with cum_seqlens its last two dimensions may be longer than needed. Where
// the host does not know the lengths they may also be shorter than what it must assume: the view then keeps its own extent.
inline View broadcast_view(const AttentionProblem& problem, const char* name, const attile_tensor& t) {
  const char* f = problem.function;
  const int64_t target[4] = {problem.batch, problem.heads_q, problem.q_seqs.longest, problem.k_seqs.longest};
  const bool ragged[4] = {false, false, bool(problem.q_seqs.cu), bool(problem.k_seqs.cu)};
  const bool unknown[4] = {false, false, problem.q_seqs.cu.on_device, problem.k_seqs.cu.on_device};
  auto refuse = [&] {
    std::string expected = "(";
    for (int i = 0; i < 4; ++i) expected += (i ? ", " : "") + std::string(ragged[i] ? "at least " : "") + std::to_string(target[i]);
    value_error(f, std::string(name) + ".shape must broadcast to [batch, heads_q, seqlen_q, seqlen_k]", expected + ")", t);
  };
  if (t.rank > 4) refuse();
  check_contiguous(f, name, t, true);
  View v = view_of(t);
  for (int i = 0; i < 4; ++i) {
    if (v.shape[i] == 1) v.stride[i] = 0;
    else if (unknown[i] && v.shape[i] < target[i]) continue;
    else if (ragged[i] ? v.shape[i] < target[i] : v.shape[i] != target[i]) refuse();
    v.shape[i] = target[i];
  }
  return v;
}

inline View bias_view(const AttentionProblem& problem, const attile_tensor& t) {
  floating_dtype(problem.function, "bias", t, "float64, float32, float16 or bfloat16", false);
  return broadcast_view(problem, "bias", t);
}

inline View attention_mask_view(const AttentionProblem& problem, const attile_tensor& t) {
  const DType id = dtype_of(t.dtype);
  if (id == DType::none || !is_mask(id)) type_error(problem.function, "attention_mask has an unsupported dtype", "bool or an integer type", name_of(t.dtype));
  return broadcast_view(problem, "attention_mask", t);
}

inline Dropout checked_dropout(const char* f, double probability, bool has_seed, uint64_t seed) {
  if (!(probability >= 0 && probability < 1)) value_error(f, "dropout_prob is out of range", "0 <= dropout_prob < 1", probability);
  if (probability > 0 && !has_seed) value_error(f, "dropout_prob > 0 needs dropout_seed", "an integer", "none");
  return {seed, static_cast<uint32_t>(std::floor(probability * 0x1p32)), 1 / (1 - probability)};
}

}  // namespace attile
