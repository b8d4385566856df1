// flash_attention's arguments to an AttentionProblem. The order is: presence and device, ranks and dtypes, sequences, shapes,
// optional arrays, scalars; the first violation is the error.
#include <cmath>
#include <limits>

#include "core/option_checks.hpp"
#include "core/validate.hpp"

namespace attile {
namespace {

constexpr int64_t kMaxHeadDim = 576, kMaxHeadDimV = 512;

struct Validator {
  const attile_flash_attention_params& p;
  const char* f = "flash_attention";
  AttentionProblem problem{};
  bool packed = false;
  int32_t rank = 0;

  bool present(const attile_tensor* t) const { return t != nullptr; }

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
      if (t) check_device(f, name, *t, "query", *p.query, index);
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

  Sequences sequences(const char* cu_name, const attile_tensor* cu, const char* name, const attile_tensor& x) {
    Sequences s;
    s.rows = x.shape[rank - 3];
    s.batch = rank == 4 ? x.shape[0] : 1;
    s.longest = s.rows;
    if (!cu) return s;
    s.cu = index_view(f, cu_name, *cu);
    s.packed = packed;
    if (s.cu.size < 1) value_error(f, std::string(cu_name) + " must have at least one entry", "length batch + 1", s.cu.size);
    if (packed) s.batch = s.cu.size - 1;
    else if (s.cu.size != s.batch + 1) value_error(f, axis(cu_name, 0) + " must equal batch + 1", s.batch + 1, s.cu.size);
    if (s.cu.on_device) return s;  // the kernels read it, and clamp what they find
    if (s.cu[0] != 0) value_error(f, std::string(cu_name) + "[0] must be zero", int64_t{0}, s.cu[0]);
    s.longest = 0;
    for (int64_t b = 0; b < s.batch; ++b) {
      const std::string entry = std::string(cu_name) + "[" + std::to_string(b + 1) + "]";
      if (s.cu[b + 1] < s.cu[b]) value_error(f, entry + " must not decrease", "at least " + std::to_string(s.cu[b]), s.cu[b + 1]);
      if (!packed && s.length(b) > s.rows)
        value_error(f, entry + " makes a sequence longer than " + axis(name, 1), "a length of at most " + std::to_string(s.rows), s.length(b));
      s.longest = std::max(s.longest, s.length(b));
    }
    if (packed && s.cu[s.batch] > s.rows)
      value_error(f, std::string(cu_name) + "[-1] must be at most " + axis(name, 0), "at most " + std::to_string(s.rows), s.cu[s.batch]);
    return s;
  }

  void all_sequences() {
    const bool q = present(p.cum_seqlens_q), k = present(p.cum_seqlens_k);
    if (rank == 3 && q != k)
      value_error(f, "cum_seqlens_q and cum_seqlens_k must both be given for packed arrays of rank 3", "both",
                  q ? "cum_seqlens_q alone" : "cum_seqlens_k alone");
    packed = rank == 3 && q;
    problem.q_seqs = sequences("cum_seqlens_q", p.cum_seqlens_q, "query", *p.query);
    problem.k_seqs = sequences("cum_seqlens_k", p.cum_seqlens_k, "key", *p.key);
    if (problem.q_seqs.batch != problem.k_seqs.batch)
      value_error(f, axis("cum_seqlens_k", 0) + " must equal " + axis("cum_seqlens_q", 0), problem.q_seqs.batch + 1, problem.k_seqs.batch + 1);
    problem.batch = problem.q_seqs.batch;
    if (q) problem.options |= kVarlenQ;
    if (k) problem.options |= kVarlenK;
  }

  // A bias or mask, broadcast to [B, Hq, Nq, Nk] with zero strides; with cum_seqlens the last two may be longer than needed. Where
  // the host does not know the lengths they may also be shorter than what it must assume: the view then keeps its own extent.
  View broadcast(const char* name, const attile_tensor& t) {
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

  void bias_and_mask() {
    if (present(p.bias)) {
      floating_dtype(f, "bias", *p.bias, "float64, float32, float16 or bfloat16", false);
      problem.bias = broadcast("bias", *p.bias);
      problem.options |= kBias;
    }
    if (present(p.attention_mask)) {
      const DType id = dtype_of(p.attention_mask->dtype);
      if (id == DType::none || !is_mask(id)) type_error(f, "attention_mask has an unsupported dtype", "bool or an integer type", name_of(p.attention_mask->dtype));
      problem.attention_mask = broadcast("attention_mask", *p.attention_mask);
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

  void scales() {
    for (const auto& [name, t] : {std::pair{"q_scale", p.q_scale}, std::pair{"k_scale", p.k_scale}, std::pair{"v_scale", p.v_scale}}) {
      if (!t) continue;
      if (problem.dtype != DType::f8e4m3)
        value_error(f, std::string(name) + " belongs to float8_e4m3 inputs", "none", "a scale with " + std::string(info(problem.dtype).name) + " inputs");
      problem.options |= kFloat8Scales;
    }
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
    if (!(p.dropout_prob >= 0 && p.dropout_prob < 1)) value_error(f, "dropout_prob is out of range", "0 <= dropout_prob < 1", p.dropout_prob);
    if (p.dropout_prob == 0) return;
    if (!p.has_dropout_seed) value_error(f, "dropout_prob > 0 needs dropout_seed", "an integer", "none");
    problem.dropout = {p.dropout_seed, static_cast<uint32_t>(std::floor(p.dropout_prob * 0x1p32)), 1 / (1 - p.dropout_prob)};
    problem.options |= kDropout;
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

AttentionProblem validate(const attile_flash_attention_params& params) {
  Validator v{params};
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
      {"block_q", config.block_q, 4096}, {"block_k", config.block_k, 4096}, {"num_splits", config.num_splits, 1024}};
  for (const auto& [name, value, most] : fields)
    if (value < 0 || value > most)
      value_error(function, std::string("cfg.") + name + " is out of range", "0 (or None) to " + std::to_string(most), value);
  return {config.block_q, config.block_k, config.num_splits, config.kernel ? config.kernel : ""};
}

}  // namespace attile
