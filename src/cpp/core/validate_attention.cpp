// flash_attention's arguments to an AttentionProblem. The order is: presence and device, ranks and dtypes, sequences, shapes,
// optional arrays, scalars; the first violation is the error.
#include <cmath>
#include <limits>

#include "core/attention_checks.hpp"
#include "core/validate.hpp"

namespace attile {
namespace {

constexpr int64_t kMaxHeadDim = 576, kMaxHeadDimV = 512;

struct Validator {
  const attile_flash_attention_params& p;
  const char* f;
  AttentionProblem problem{};
  int32_t rank = 0;

  bool present(const attile_tensor* t) const { return t != nullptr; }
  static bool is_number(const attile_tensor& t) { return t.rank == 0 && t.device_type == 1; }

  void arrays() {
    const struct { const char* name; const attile_tensor* t; bool index; } given[] = {
        {"query", p.query, false}, {"key", p.key, false}, {"value", p.value, false}, {"bias", p.bias, false},
        {"softmax_aux", p.softmax_aux, false}, {"attention_mask", p.attention_mask, false}, {"cum_seqlens_q", p.cum_seqlens_q, true},
        {"cum_seqlens_k", p.cum_seqlens_k, true}, {"q_segment_ids", p.q_segment_ids, true}, {"kv_segment_ids", p.kv_segment_ids, true},
        {"q_scale", p.q_scale, false}, {"k_scale", p.k_scale, false}, {"v_scale", p.v_scale, false}};
    for (int i = 0; i < 3; ++i)
      if (!given[i].t) type_error(f, std::string(given[i].name) + " is required", "an array", "none");
    check_place(f, "query", *p.query, p.platform);
    for (const auto& [name, t, index] : given)
      if (t) check_device(f, name, *t, "query", *p.query, index || is_number(*t));
    problem.device_type = p.query->device_type;
    problem.device_id = p.query->device_id;
  }

  void ranks_and_dtypes() {
    check_rank(f, "query", *p.query, {3, 4});
    rank = p.query->rank;
    check_rank(f, "key", *p.key, {rank});
    check_rank(f, "value", *p.value, {rank});
    problem.dtype = floating_dtype(f, "query", *p.query, "float64, float32, float16, bfloat16 or float8_e4m3", true);
    for (const auto& [name, t] : {std::pair{"key", p.key}, std::pair{"value", p.value}})
      if (dtype_of(t->dtype) != problem.dtype)
        type_error(f, std::string(name) + ".dtype must equal query.dtype", info(problem.dtype).name, name_of(t->dtype));
    check_contiguous(f, "query", *p.query);
    check_contiguous(f, "key", *p.key);
    check_contiguous(f, "value", *p.value);
    problem.q = view_of(*p.query);
    problem.k = view_of(*p.key);
    problem.v = view_of(*p.value);
  }

  void shapes() {
    const int32_t t = rank - 3, h = rank - 2, d = rank - 1;  // axes of tokens, heads, dims
    if (rank == 4) {
      check_size(f, "key", *p.key, 0, p.query->shape[0], "query.shape[0]");
      check_size(f, "value", *p.value, 0, p.query->shape[0], "query.shape[0]");
    }
    check_size(f, "value", *p.value, t, p.key->shape[t], axis("key", t));
    check_size(f, "value", *p.value, h, p.key->shape[h], axis("key", h));
    check_size(f, "key", *p.key, d, p.query->shape[d], axis("query", d));
    problem.heads_q = p.query->shape[h];
    problem.heads_k = p.key->shape[h];
    problem.head_dim = p.query->shape[d];
    problem.head_dim_v = p.value->shape[d];
    if (problem.head_dim < 1 || problem.head_dim > kMaxHeadDim)
      value_error(f, axis("query", d) + " is out of range", "1 to " + std::to_string(kMaxHeadDim), problem.head_dim);
    if (problem.head_dim_v < 1 || problem.head_dim_v > kMaxHeadDimV)
      value_error(f, axis("value", d) + " is out of range", "1 to " + std::to_string(kMaxHeadDimV), problem.head_dim_v);
    if (problem.heads_k == 0 ? problem.heads_q != 0 : problem.heads_q % problem.heads_k != 0)
      value_error(f, axis("query", h) + " must be a multiple of " + axis("key", h), "a multiple of " + std::to_string(problem.heads_k),
                  problem.heads_q);
    problem.group = problem.heads_k ? problem.heads_q / problem.heads_k : 1;
  }

  void all_sequences() {
    const bool q = present(p.cum_seqlens_q), k = present(p.cum_seqlens_k);
    if (rank == 3 && q != k)
      value_error(f, "cum_seqlens_q and cum_seqlens_k must both be given for packed arrays of rank 3", "both",
                  q ? "cum_seqlens_q alone" : "cum_seqlens_k alone");
    problem.q_seqs = checked_sequences(f, "cum_seqlens_q", p.cum_seqlens_q, "query", *p.query, rank - 3);
    problem.k_seqs = checked_sequences(f, "cum_seqlens_k", p.cum_seqlens_k, "key", *p.key, rank - 3);
    if (problem.q_seqs.batch != problem.k_seqs.batch)
      value_error(f, axis("cum_seqlens_k", 0) + " must equal " + axis("cum_seqlens_q", 0), problem.q_seqs.batch + 1, problem.k_seqs.batch + 1);
    problem.batch = problem.q_seqs.batch;
    if (q) problem.options |= kVarlenQ;
    if (k) problem.options |= kVarlenK;
  }

  void bias_and_mask() {
    if (present(p.bias)) {
      problem.bias = bias_view(problem, *p.bias);
      problem.options |= kBias;
    }
    if (present(p.attention_mask)) {
      problem.attention_mask = attention_mask_view(problem, *p.attention_mask);
      problem.options |= kAttentionMask;
    }
  }

  View segment_ids(const char* name, const attile_tensor& t, const char* of, const attile_tensor& x) {
    const DType id = dtype_of(t.dtype);
    if (id == DType::none || !is_index(id)) type_error(f, std::string(name) + " must hold indices", "int32 or int64", name_of(t.dtype));
    check_rank(f, name, t, {rank - 2});
    for (int32_t d = 0; d < t.rank; ++d) check_size(f, name, t, d, x.shape[d], axis(of, d));
    return view_of(t);
  }

  void all_segment_ids() {
    if (present(p.q_segment_ids) != present(p.kv_segment_ids))
      value_error(f, "q_segment_ids and kv_segment_ids must be given together", "both",
                  present(p.q_segment_ids) ? "q_segment_ids alone" : "kv_segment_ids alone");
    if (!present(p.q_segment_ids)) return;
    problem.q_ids = segment_ids("q_segment_ids", *p.q_segment_ids, "query", *p.query);
    problem.k_ids = segment_ids("kv_segment_ids", *p.kv_segment_ids, "key", *p.key);
    problem.options |= kSegmentIds;
  }

  void sinks() {
    if (!present(p.softmax_aux)) return;
    problem.sinks = sinks_view(f, *p.softmax_aux, problem.heads_q);
    problem.options |= kSinks;
  }

  // A number in host memory is multiplied into `factor`.
  void factor_of(const char* name, const attile_tensor* t, View& view, double& factor) {
    if (!t) return;
    if (problem.dtype != DType::f8e4m3)
      value_error(f, std::string(name) + " belongs to float8_e4m3 inputs", "none", "a scale with " + std::string(info(problem.dtype).name) + " inputs");
    problem.options |= kFloat8Scales;
    if (dtype_of(t->dtype) != DType::f32) type_error(f, std::string(name) + " has an unsupported dtype", "float32", name_of(t->dtype));
    if (is_number(*t)) {
      factor *= *static_cast<const float*>(t->data);
      return;
    }
    check_rank(f, name, *t, {0, 2});
    if (t->rank == 2) {
      check_size(f, name, *t, 0, problem.batch, "the number of sequences");
      check_size(f, name, *t, 1, problem.heads_k, axis("key", rank - 2));
    }
    view = view_of(*t);
  }

  void scales() {
    factor_of("q_scale", p.q_scale, problem.q_scale, problem.qk_factor);
    factor_of("k_scale", p.k_scale, problem.k_scale, problem.qk_factor);
    factor_of("v_scale", p.v_scale, problem.v_scale, problem.v_factor);
    problem.softmax_scale = checked_scale(f, p.has_softmax_scale ? p.softmax_scale : 1 / std::sqrt(static_cast<double>(problem.head_dim)));
    if (p.has_logits_soft_cap) {
      problem.softcap = checked_cap(f, p.logits_soft_cap);
      problem.options |= kSoftcap;
    }
  }

  void masks() {
    problem.causal = p.causal != 0;
    problem.alignment = p.causal_alignment == ATTILE_BOTTOM_RIGHT ? Alignment::bottom_right : Alignment::top_left;
    if (problem.causal) problem.options |= kCausal;
    if (!p.has_sliding_window) return;
    problem.window_left = window_side(f, "left", p.window_left);
    problem.window_right = window_side(f, "right", p.window_right);
    if (problem.window_left < Mask::kUnlimited || problem.window_right < Mask::kUnlimited) problem.options |= kWindow;
  }

  void dropout() {
    problem.dropout = checked_dropout(f, p.dropout_prob, p.has_dropout_seed, p.dropout_seed);
    if (p.dropout_prob > 0) problem.options |= kDropout;
  }

  void rest() {
    if (!p.normalize_output) problem.options |= kUnnormalized;
    if (p.return_lse) problem.options |= kLse;
    if (problem.dtype == DType::f32 && p.precision != ATTILE_PRECISION_HIGHEST) {
      problem.precision = p.precision;
      problem.options |= kReducedPrecision;
    }
    if (p.logits_dtype.bits == 0) return;
    const DType id = dtype_of(p.logits_dtype);
    const DType accumulator = accumulator_of(problem.dtype);
    if (id != accumulator && id != DType::f16 && id != DType::bf16)
      type_error(f, "logits_dtype is unsupported", std::string(info(accumulator).name) + ", bfloat16 or float16", name_of(p.logits_dtype));
    if (id == accumulator) return;
    problem.logits_dtype = id;
    problem.options |= kLogitsDtype;
  }
};

}  // namespace

AttentionProblem validate(const attile_flash_attention_params& params, const char* function) {
  Validator v{params, function};
  v.problem.function = function;
  v.arrays();
  v.ranks_and_dtypes();
  v.shapes();
  v.all_sequences();
  v.bias_and_mask();
  v.all_segment_ids();
  v.sinks();
  v.scales();
  v.masks();
  v.dropout();
  v.rest();
  return v.problem;
}

Config validate_config(const char* function, const attile_config& config) {
  const struct { const char* name; int64_t value; int64_t most; } fields[] = {
      {"block_q", config.block_q, Config::kMaxBlock}, {"block_k", config.block_k, Config::kMaxBlock},
      {"num_splits", config.num_splits, Config::kMaxSplits}};
  for (const auto& [name, value, most] : fields)
    if (value < 0 || value > most)
      value_error(function, std::string("cfg.") + name + " is out of range", "0 (or None) to " + std::to_string(most), value);
  return {config.block_q, config.block_k, config.num_splits, config.kernel ? config.kernel : ""};
}

}  // namespace attile
