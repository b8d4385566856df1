// mla_attention's arguments to an AttentionProblem whose keys and values are made of latents. The order is that of
// flash_attention: presence and device, ranks and dtypes, sequences, shapes, optional arrays, scalars; the first violation is the error.
#include <cmath>

#include "core/attention_checks.hpp"
#include "core/validate.hpp"

namespace attile {
namespace {

constexpr int64_t kMaxHeadDim = 576, kMaxHeadDimV = 512, kMaxRank = 4096;

struct Validator {
  const attile_mla_attention_params& p;
  const char* f;
  AttentionProblem problem{};
  Latents& latents = problem.latents;
  int32_t token = 0;  // axis of tokens: 1, or 0 where there is no batch axis

  void arrays() {
    const struct { const char* name; const attile_tensor* t; bool index; } given[] = {
        {"query", p.query, false}, {"key_value", p.key_value, false}, {"w_kc", p.w_kc, false}, {"w_vc", p.w_vc, false},
        {"b_q", p.b_q, false}, {"b_k", p.b_k, false}, {"bias", p.bias, false}, {"softmax_aux", p.softmax_aux, false},
        {"attention_mask", p.attention_mask, false}, {"cu_seqlens", p.cu_seqlens, true}};
    for (int i = 0; i < 4; ++i)
      if (!given[i].t) type_error(f, std::string(given[i].name) + " is required", "an array", "none");
    check_place(f, "query", *p.query, p.platform);
    for (const auto& [name, t, index] : given)
      if (t) check_device(f, name, *t, "query", *p.query, index);
    problem.function = f;
    problem.device_type = p.query->device_type;
    problem.device_id = p.query->device_id;
    if (p.b_q && !p.b_k) value_error(f, "b_q needs b_k", "both, or b_k alone", "b_q alone");
  }

  void ranks_and_dtypes() {
    check_rank(f, "key_value", *p.key_value, {2, 3});
    token = p.key_value->rank - 2;
    check_rank(f, "query", *p.query, {token + 3});
    check_rank(f, "w_kc", *p.w_kc, {3});
    check_rank(f, "w_vc", *p.w_vc, {3});
    if (p.b_q) check_rank(f, "b_q", *p.b_q, {token + 2, token + 3});
    if (p.b_k) check_rank(f, "b_k", *p.b_k, {token + 2, token + 3});
    problem.dtype = floating_dtype(f, "query", *p.query, "float64, float32, float16 or bfloat16", false);
    const struct { const char* name; const attile_tensor* t; } given[] = {
        {"query", p.query}, {"key_value", p.key_value}, {"w_kc", p.w_kc}, {"w_vc", p.w_vc}, {"b_q", p.b_q}, {"b_k", p.b_k}};
    for (const auto& [name, t] : given)
      if (t && dtype_of(t->dtype) != problem.dtype)
        type_error(f, std::string(name) + ".dtype must equal query.dtype", info(problem.dtype).name, name_of(t->dtype));
    for (const auto& [name, t] : given)
      if (t) check_contiguous(f, name, *t);
  }

  void in_range(const char* name, const attile_tensor& t, int32_t d, int64_t most) {
    if (t.shape[d] < 1 || t.shape[d] > most) value_error(f, axis(name, d) + " is out of range", "1 to " + std::to_string(most), t.shape[d]);
  }

  void shapes() {
    const attile_tensor &q = *p.query, &kv = *p.key_value, &kc = *p.w_kc, &vc = *p.w_vc;
    if (token == 1) check_size(f, "key_value", kv, 0, q.shape[0], "query.shape[0]");
    if (p.cu_seqlens) check_size(f, "key_value", kv, token, q.shape[token], axis("query", token) + " with cu_seqlens");
    check_size(f, "w_kc", kc, 0, kv.shape[token + 1], axis("key_value", token + 1));
    check_size(f, "w_vc", vc, 0, kv.shape[token + 1], axis("key_value", token + 1));
    check_size(f, "w_vc", vc, 1, kc.shape[1], "w_kc.shape[1]");
    in_range("key_value", kv, token + 1, kMaxRank);
    in_range("w_kc", kc, 2, kMaxHeadDim);
    in_range("w_vc", vc, 2, kMaxHeadDimV);
    latents.rank = kv.shape[token + 1];
    latents.nope_dim = kc.shape[2];
    problem.heads_q = q.shape[token + 1];
    problem.heads_k = kc.shape[1];
    problem.head_dim_v = vc.shape[2];
    if (problem.heads_k == 0 ? problem.heads_q != 0 : problem.heads_q % problem.heads_k != 0)
      value_error(f, axis("query", token + 1) + " must be a multiple of w_kc.shape[1]", "a multiple of " + std::to_string(problem.heads_k),
                  problem.heads_q);
    problem.group = problem.heads_k ? problem.heads_q / problem.heads_k : 1;

    problem.q = view_of(q);
    latents.latent = tokens_view(kv, false);
    latents.w_kc = view_of(kc);
    latents.w_vc = view_of(vc);
    rope_parts();
    problem.head_dim = latents.nope_dim + latents.rope_dim;
    if (problem.head_dim > kMaxHeadDim)
      value_error(f, "w_kc.shape[2] + b_k.shape[-1] is out of range", "at most " + std::to_string(kMaxHeadDim), problem.head_dim);
    const bool inside = latents.rope_dim > 0 && !p.b_q;
    check_size(f, "query", q, token + 2, inside ? problem.head_dim : latents.nope_dim,
               inside ? "w_kc.shape[2] + b_k.shape[-1], for it has the rope part" : "w_kc.shape[2]");
  }

  View rope_view(const char* name, const attile_tensor& t, const char* of, const attile_tensor& x) {
    for (int32_t d = 0; d <= token; ++d) check_size(f, name, t, d, x.shape[d], axis(of, d));
    const bool by_head = t.rank == token + 3;
    if (by_head) check_size(f, name, t, token + 1, problem.heads_q, axis("query", token + 1));
    return tokens_view(t, by_head);
  }

  void rope_parts() {
    if (!p.b_k) return;
    const int32_t last = p.b_k->rank - 1;
    latents.k_rope = rope_view("b_k", *p.b_k, "key_value", *p.key_value);
    in_range("b_k", *p.b_k, last, kMaxHeadDim);
    latents.rope_dim = p.b_k->shape[last];
    latents.rope_by_head = last == token + 2 && problem.heads_q > 1;
    if (!p.b_q) return;
    latents.q_rope = rope_view("b_q", *p.b_q, "query", *p.query);
    check_size(f, "b_q", *p.b_q, p.b_q->rank - 1, latents.rope_dim, axis("b_k", last));
  }

  void sequences() {
    problem.q_seqs = checked_sequences(f, "cu_seqlens", p.cu_seqlens, "query", *p.query, token);
    problem.k_seqs = checked_sequences(f, "cu_seqlens", p.cu_seqlens, "key_value", *p.key_value, token);
    problem.batch = problem.q_seqs.batch;
    problem.options |= kLatents | (p.cu_seqlens ? kVarlenQ | kVarlenK : 0);
  }

  void options() {
    if (p.bias) {
      problem.bias = bias_view(problem, *p.bias);
      problem.options |= kBias;
    }
    if (p.attention_mask) {
      problem.attention_mask = attention_mask_view(problem, *p.attention_mask);
      problem.options |= kAttentionMask;
    }
    if (p.softmax_aux) {
      problem.sinks = sinks_view(f, *p.softmax_aux, problem.heads_q);
      problem.options |= kSinks;
    }
    problem.softmax_scale = checked_scale(f, p.has_softmax_scale ? p.softmax_scale : 1 / std::sqrt(static_cast<double>(problem.head_dim)));
    if (p.has_logits_soft_cap) {
      problem.softcap = checked_cap(f, p.logits_soft_cap);
      problem.options |= kSoftcap;
    }
    problem.causal = p.causal != 0;
    problem.alignment = p.causal_alignment == ATTILE_BOTTOM_RIGHT ? Alignment::bottom_right : Alignment::top_left;
    if (problem.causal) problem.options |= kCausal;
    if (p.has_sliding_window) {
      problem.window_left = window_side(f, "left", p.window_left);
      problem.window_right = window_side(f, "right", p.window_right);
      if (problem.window_left < Mask::kUnlimited || problem.window_right < Mask::kUnlimited) problem.options |= kWindow;
    }
    problem.dropout = checked_dropout(f, p.dropout_prob, p.has_dropout_seed, p.dropout_seed);
    if (p.dropout_prob > 0) problem.options |= kDropout;
    if (p.return_lse) problem.options |= kLse;
  }
};

}  // namespace

AttentionProblem validate(const attile_mla_attention_params& params, const char* function) {
  Validator v{params, function};
  v.arrays();
  v.ranks_and_dtypes();
  v.shapes();
  v.sequences();
  v.options();
  return v.problem;
}

}  // namespace attile
