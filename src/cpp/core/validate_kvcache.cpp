// flash_attention_with_kvcache's arguments to an AttentionProblem: a batch of queries against caches, dense with lengths or paged,
// bottom-right. Lengths and the page numbers that they reach are checked; entries of the page table past them are never looked at.
#include <cmath>

#include "core/option_checks.hpp"
#include "core/validate.hpp"

namespace attile {
namespace {

constexpr int64_t kMaxHeadDim = 576, kMaxHeadDimV = 512;

struct Validator {
  const attile_flash_attention_with_kvcache_params& p;
  const char* f = "flash_attention_with_kvcache";
  AttentionProblem problem{};

  void arrays() {
    const struct { const char* name; const attile_tensor* t; bool index; } given[] = {
        {"q", p.q, false}, {"k_cache", p.k_cache, false}, {"v_cache", p.v_cache, false}, {"cache_seqlens", p.cache_seqlens, true},
        {"page_table", p.page_table, true}, {"softmax_aux", p.softmax_aux, false}};
    for (int i = 0; i < 3; ++i)
      if (!given[i].t) type_error(f, std::string(given[i].name) + " is required", "an array", "none");
    check_place(f, "q", *p.q, p.platform);
    for (const auto& [name, t, index] : given)
      if (t) check_device(f, name, *t, "q", *p.q, index);
    problem.function = f;
    problem.device_type = p.q->device_type;
    problem.device_id = p.q->device_id;
  }

  void ranks_and_dtypes() {
    check_rank(f, "q", *p.q, {4});
    check_rank(f, "k_cache", *p.k_cache, {4});
    check_rank(f, "v_cache", *p.v_cache, {4});
    problem.dtype = floating_dtype(f, "q", *p.q, "float64, float32, float16, bfloat16 or float8_e4m3", true);
    for (const auto& [name, t] : {std::pair{"k_cache", p.k_cache}, std::pair{"v_cache", p.v_cache}})
      if (dtype_of(t->dtype) != problem.dtype)
        type_error(f, std::string(name) + ".dtype must equal q.dtype", info(problem.dtype).name, name_of(t->dtype));
    check_contiguous(f, "q", *p.q);
    check_contiguous(f, "k_cache", *p.k_cache);
    check_contiguous(f, "v_cache", *p.v_cache);
    problem.q = view_of(*p.q);
    problem.k = view_of(*p.k_cache);
    problem.v = view_of(*p.v_cache);
  }

  void shapes() {
    const attile_tensor &q = *p.q, &k = *p.k_cache, &v = *p.v_cache;
    if (!p.page_table) check_size(f, "k_cache", k, 0, q.shape[0], "q.shape[0]");
    for (int32_t d = 0; d < 3; ++d) check_size(f, "v_cache", v, d, k.shape[d], axis("k_cache", d));
    check_size(f, "k_cache", k, 3, q.shape[3], "q.shape[3]");
    problem.batch = q.shape[0];
    problem.heads_q = q.shape[2];
    problem.heads_k = k.shape[2];
    problem.head_dim = q.shape[3];
    problem.head_dim_v = v.shape[3];
    if (problem.head_dim < 1 || problem.head_dim > kMaxHeadDim)
      value_error(f, "q.shape[3] is out of range", "1 to " + std::to_string(kMaxHeadDim), problem.head_dim);
    if (problem.head_dim_v < 1 || problem.head_dim_v > kMaxHeadDimV)
      value_error(f, "v_cache.shape[3] is out of range", "1 to " + std::to_string(kMaxHeadDimV), problem.head_dim_v);
    if (problem.heads_k == 0 ? problem.heads_q != 0 : problem.heads_q % problem.heads_k != 0)
      value_error(f, "q.shape[2] must be a multiple of k_cache.shape[2]", "a multiple of " + std::to_string(problem.heads_k), problem.heads_q);
    problem.group = problem.heads_k ? problem.heads_q / problem.heads_k : 1;
    problem.q_seqs.batch = problem.k_seqs.batch = problem.batch;
    problem.q_seqs.rows = problem.q_seqs.longest = q.shape[1];
  }

  // Sets how many keys a sequence can have.
  void pages() {
    problem.k_seqs.rows = problem.k_seqs.longest = p.k_cache->shape[1];
    if (!p.page_table) return;
    const attile_tensor& t = *p.page_table;
    const DType id = dtype_of(t.dtype);
    if (id == DType::none || !is_index(id)) type_error(f, "page_table must hold indices", "int32 or int64", name_of(t.dtype));
    check_rank(f, "page_table", t, {2});
    check_size(f, "page_table", t, 0, problem.batch, "q.shape[0]");
    if (p.k_cache->shape[1] < 1) value_error(f, "k_cache.shape[1], the page size, must be positive", "at least 1", p.k_cache->shape[1]);
    if (!p.cache_seqlens) value_error(f, "cache_seqlens is required with page_table", "an array", "none");
    problem.page_table = view_of(t);
    problem.options |= kPages;
    problem.k_seqs.rows = problem.k_seqs.longest = t.shape[1] * problem.page_size();
  }

  void lengths() {
    if (!p.cache_seqlens) return;
    Sequences& s = problem.k_seqs;
    s.lens = index_view(f, "cache_seqlens", *p.cache_seqlens);
    if (s.lens.size != problem.batch) value_error(f, "cache_seqlens.shape[0] must equal q.shape[0]", problem.batch, s.lens.size);
    problem.options |= kKvLens;
    if (s.lens.on_device) return;  // the kernels read it, and clamp what they find
    s.longest = 0;
    const char* capacity = p.page_table ? "page_table.shape[1] * page_size" : "k_cache.shape[1]";
    for (int64_t b = 0; b < problem.batch; ++b) {
      const int64_t length = s.lens[b];
      if (length < 0 || length > s.rows)
        value_error(f, "cache_seqlens[" + std::to_string(b) + "] must be from 0 to " + capacity, "0 to " + std::to_string(s.rows), length);
      s.longest = std::max(s.longest, length);
    }
  }

  void page_numbers() {
    if (!problem.has(kPages) || problem.k_seqs.lens.on_device || p.page_table->device_type != 1) return;
    const View& table = problem.page_table;
    const int64_t pages = problem.k.shape[0], size = problem.page_size();
    for (int64_t b = 0; b < problem.batch; ++b) {
      const IndexView row{table.at(0, 0, b), table.dtype, table.shape[3], table.stride[3]};
      const int64_t used = (problem.k_seqs.lens[b] + size - 1) / size;
      for (int64_t i = 0; i < used; ++i)
        if (row[i] < 0 || row[i] >= pages)
          value_error(f, "page_table[" + std::to_string(b) + ", " + std::to_string(i) + "] must be a page of k_cache",
                      "0 to " + std::to_string(pages - 1), row[i]);
    }
  }

  void options() {
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
    problem.alignment = Alignment::bottom_right;
    if (problem.causal) problem.options |= kCausal;
    if (p.has_sliding_window) {
      problem.window_left = window_side(f, "left", p.window_left);
      problem.window_right = window_side(f, "right", p.window_right);
      if (problem.window_left < Mask::kUnlimited || problem.window_right < Mask::kUnlimited) problem.options |= kWindow;
    }
    if (p.return_lse) problem.options |= kLse;
    if (p.num_splits < 0 || p.num_splits > Config::kMaxSplits)
      value_error(f, "num_splits is out of range", "0 (the heuristic) to " + std::to_string(Config::kMaxSplits), p.num_splits);
    if (p.num_splits && p.config.num_splits)
      value_error(f, "num_splits must be given once", "num_splits or cfg.num_splits", "both");
  }
};

}  // namespace

AttentionProblem validate(const attile_flash_attention_with_kvcache_params& params) {
  Validator v{params};
  v.arrays();
  v.ranks_and_dtypes();
  v.shapes();
  v.pages();
  v.lengths();
  v.page_numbers();
  v.options();
  return v.problem;
}

}  // namespace attile
