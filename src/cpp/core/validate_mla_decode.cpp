// mla_decode's arguments to an MlaDecodeProblem, and the plan of a batch. The order is: presence and device, ranks and dtypes, shapes,
// lengths and pages, options; the first violation is the error.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "core/option_checks.hpp"
#include "core/validate.hpp"

namespace attile {
namespace {

constexpr int64_t kMaxLatent = 512, kMaxRope = 128, kStep = 8;

// [A, T, dim] as [A, T, 1, dim]; [A, T, H, dim] as it is.
View cache_view(const attile_tensor& t) {
  View v = view_of(t);
  if (t.rank == 4) return v;
  v.shape[0] = v.shape[1], v.stride[0] = v.stride[1];
  v.shape[1] = v.shape[2], v.stride[1] = v.stride[2];
  v.shape[2] = 1, v.stride[2] = 0;
  return v;
}

bool is_dim(int64_t dim, int64_t most) { return dim >= kStep && dim <= most && dim % kStep == 0; }

void check_dim(const char* f, const std::string& name, int64_t dim, int64_t most) {
  if (!is_dim(dim, most))
    value_error(f, name + " is out of range", "a multiple of 8 from 8 to " + std::to_string(most), dim);
}

std::string entry(const char* name, int64_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

struct Validator {
  const attile_mla_decode_params& p;
  const MlaDecodePlan* plan;
  const char* f;
  const char *ckv = "ckv", *kpe = "kpe";
  MlaDecodeProblem problem{};
  int32_t rank = 4;  // of q_nope

  Validator(const attile_mla_decode_params& params, const MlaDecodePlan* given)
      : p(params), plan(given), f(given ? "BatchMLAPagedAttentionWrapper.run" : "mla_decode") {
    if (plan) ckv = "ckv_cache", kpe = "kpe_cache", rank = 3;
    problem.function = f;
  }

  void arrays() {
    const struct { const char* name; const attile_tensor* t; bool host; } given[] = {
        {"q_nope", p.q_nope, false}, {ckv, p.ckv, false}, {"q_pe", p.q_pe, false}, {kpe, p.kpe, false}, {"kv_lens", p.kv_lens, true},
        {"page_table", p.page_table, true}, {"ckv_scale", p.ckv_scale, true}, {"softmax_aux", p.softmax_aux, false}};
    for (int i = 0; i < 2; ++i)
      if (!given[i].t) type_error(f, std::string(given[i].name) + " is required", "an array", "none");
    check_place(f, "q_nope", *p.q_nope, p.platform);
    for (const auto& [name, t, host] : given)
      if (t) check_device(f, name, *t, "q_nope", *p.q_nope, host);
    problem.device_type = p.q_nope->device_type;
    problem.device_id = p.q_nope->device_id;
    if ((p.q_pe == nullptr) != (p.kpe == nullptr))
      value_error(f, std::string("q_pe and ") + kpe + " must be given together", "both, or neither without a rope part",
                  std::string(p.q_pe ? "q_pe" : kpe) + " alone");
  }

  void ranks_and_dtypes() {
    check_rank(f, "q_nope", *p.q_nope, {rank});
    check_rank(f, ckv, *p.ckv, {3});
    problem.dtype = floating_dtype(f, "q_nope", *p.q_nope, "float64, float32, float16 or bfloat16", false);
    check_contiguous(f, "q_nope", *p.q_nope);
    const DType latent = floating_dtype(f, ckv, *p.ckv, "the dtype of q_nope, or float8_e4m3", true);
    if (latent == DType::f8e4m3 ? problem.dtype != DType::bf16 : latent != problem.dtype)
      type_error(f, std::string(ckv) + ".dtype must equal q_nope.dtype, or be float8_e4m3 beside bfloat16", info(problem.dtype).name, name_of(p.ckv->dtype));
    if (latent == DType::f8e4m3) {
      problem.options |= kFloat8Scales;
      if (p.ckv_scale) problem.ckv_scale = scalar("ckv_scale", *p.ckv_scale);
    }
    if (p.ckv_scale && latent != DType::f8e4m3)
      value_error(f, std::string("ckv_scale belongs to a float8_e4m3 ") + ckv, "none", "a scale with " + std::string(info(latent).name));
    check_contiguous(f, ckv, *p.ckv);
    problem.q = view_of(*p.q_nope);
    problem.k = cache_view(*p.ckv);
    problem.v = problem.k;
    if (!p.q_pe) return;
    check_rank(f, "q_pe", *p.q_pe, {rank});
    check_rank(f, kpe, *p.kpe, {3, 4});
    for (const auto& [name, t] : {std::pair{"q_pe", p.q_pe}, std::pair{kpe, p.kpe}}) {
      if (dtype_of(t->dtype) != problem.dtype) type_error(f, std::string(name) + ".dtype must equal q_nope.dtype", info(problem.dtype).name, name_of(t->dtype));
      check_contiguous(f, name, *t);
    }
    problem.q_pe = view_of(*p.q_pe);
    problem.kpe = cache_view(*p.kpe);
  }

  // Names of axes are made for errors alone: a call has ten.
  void same_size(const char* name, const attile_tensor& t, int32_t i, int64_t expected, const char* of, int32_t of_axis) const {
    if (t.shape[i] != expected) check_size(f, name, t, i, expected, axis(of, of_axis));
  }
  void dim(const char* name, int32_t i, int64_t size, int64_t most) const {
    if (!is_dim(size, most)) check_dim(f, axis(name, i), size, most);
  }

  void shapes() {
    const int32_t h = rank - 2, d = rank - 1;
    problem.heads_q = problem.group = p.q_nope->shape[h];
    problem.heads_k = 1;
    problem.latent = p.q_nope->shape[d];
    dim("q_nope", d, problem.latent, kMaxLatent);
    if (problem.has(kFloat8Scales) && problem.latent % 16 != 0)
      value_error(f, axis("q_nope", d) + " is out of range beside float8_e4m3", "a multiple of 16", problem.latent);
    same_size(ckv, *p.ckv, 2, problem.latent, "q_nope", d);
    if (p.q_pe) {
      for (int32_t i = 0; i < d; ++i) same_size("q_pe", *p.q_pe, i, p.q_nope->shape[i], "q_nope", i);
      problem.rope = p.q_pe->shape[d];
      dim("q_pe", d, problem.rope, kMaxRope);
      problem.head_rope = p.kpe->rank == 4;
      for (int32_t i = 0; i < 2; ++i) same_size(kpe, *p.kpe, i, p.ckv->shape[i], ckv, i);
      if (problem.head_rope) same_size(kpe, *p.kpe, 2, problem.heads_q, "q_nope", h);
      same_size(kpe, *p.kpe, p.kpe->rank - 1, problem.rope, "q_pe", d);
    }
    problem.head_dim = problem.latent + problem.rope;
    problem.head_dim_v = problem.latent;
  }

  // A float32 in host memory.
  float scalar(const char* name, const attile_tensor& t) const {
    check_rank(f, name, t, {0});
    if (dtype_of(t.dtype) != DType::f32) type_error(f, std::string(name) + " has an unsupported dtype", "float32", name_of(t.dtype));
    if (t.device_type != 1) value_error(f, std::string(name) + " must be a number on the host", "a number", "an array on a device");
    float x;
    std::memcpy(&x, t.data, sizeof x);
    return x;
  }

  // Every length, and every page that a length makes reachable.
  void sequences() {
    Sequences& q = problem.q_seqs;
    Sequences& k = problem.k_seqs;
    q.batch = problem.batch = p.q_nope->shape[0];
    q.rows = q.longest = p.q_nope->shape[1];
    k.batch = q.batch;
    const int64_t extent = p.ckv->shape[1];
    if (p.kv_lens) {
      k.lens = index_view(f, "kv_lens", *p.kv_lens);
      if (k.lens.size != q.batch) value_error(f, "kv_lens.shape[0] must equal q_nope.shape[0]", q.batch, k.lens.size);
      problem.options |= kKvLens;
    }
    if (!p.page_table) {
      check_size(f, ckv, *p.ckv, 0, q.batch, "q_nope.shape[0]");
      k.rows = extent;
    } else {
      if (!p.kv_lens) type_error(f, "kv_lens is required with page_table", "an array", "none");
      check_rank(f, "page_table", *p.page_table, {2});
      const DType id = dtype_of(p.page_table->dtype);
      if (id == DType::none || !is_index(id)) type_error(f, "page_table must hold indices", "int32 or int64", name_of(p.page_table->dtype));
      check_size(f, "page_table", *p.page_table, 0, q.batch, "q_nope.shape[0]");
      if (extent < 1) value_error(f, axis(ckv, 1) + ", the page size, is out of range", "1 or more", extent);
      problem.page_table = view_of(*p.page_table);
      problem.options |= kPages;
      k.rows = p.page_table->shape[1] * extent;
    }
    k.longest = k.rows;
    if (!p.kv_lens || k.lens.on_device) return;  // the kernels read what is on a device, and clamp what they find
    k.longest = 0;
    const int64_t pages = p.ckv->shape[0];
    const bool known_pages = p.page_table && p.page_table->device_type == 1;
    for (int64_t b = 0; b < q.batch; ++b) {
      const int64_t length = k.lens[b];
      if (length < 0 || length > k.rows) value_error(f, entry("kv_lens", b) + " is out of range", "0 to " + std::to_string(k.rows), length);
      k.longest = std::max(k.longest, length);
      for (int64_t n = 0; known_pages && n * extent < length; ++n) {
        const char* at = problem.page_entry(b, n);
        const int64_t page = IndexView{at, problem.page_table.dtype, 1, 1}[0];
        if (page < 0 || page >= pages)
          value_error(f, "page_table[" + std::to_string(b) + ", " + std::to_string(n) + "] is out of range", "0 to " + std::to_string(pages - 1), page);
      }
    }
  }

  void planned_sequences() {
    const MlaDecodePlan& m = *plan;
    if (problem.dtype != m.dtype) type_error(f, "q_nope.dtype must be plan's q_data_type", info(m.dtype).name, name_of(p.q_nope->dtype));
    const auto equal = [&](const char* name, int32_t i, int64_t got, const char* planned, int64_t expected) {
      if (got != expected) value_error(f, axis(name, i) + " must be plan's " + planned, expected, got);
    };
    equal("q_nope", 1, problem.heads_q, "num_heads", m.heads);
    equal("q_nope", 2, problem.latent, "head_dim_ckv", m.latent);
    equal("q_pe", 2, problem.rope, "head_dim_kpe", m.rope);
    equal(ckv, 1, p.ckv->shape[1], "page_size", m.page_size);
    if (m.largest_page >= p.ckv->shape[0])
      value_error(f, axis(ckv, 0) + " must exceed every page of kv_indices", "at least " + std::to_string(m.largest_page + 1), p.ckv->shape[0]);
    if (m.queries > p.q_nope->shape[0])
      value_error(f, "q_nope.shape[0] must be at least qo_indptr[-1]", "at least " + std::to_string(m.queries), p.q_nope->shape[0]);
    const MlaDecodePlan::Indices& indices = planned_indices();
    Sequences& q = problem.q_seqs;
    Sequences& k = problem.k_seqs;
    q.batch = k.batch = problem.batch = m.batch;
    q.rows = p.q_nope->shape[0];
    q.longest = m.longest_q < 0 ? q.rows : m.longest_q;
    q.packed = true;
    q.cu = indices.qo_indptr;
    k.lens = indices.kv_lens;
    k.longest = k.rows = m.longest_k;
    problem.page_begin = indices.kv_indptr;
    problem.page_table.data = const_cast<char*>(indices.pages.data);
    problem.page_table.dtype = indices.pages.dtype;
    problem.page_table.shape[3] = indices.pages.size;
    problem.page_table.stride[3] = indices.pages.stride;
    problem.options |= kVarlenQ | kKvLens | kPages;
  }

  // Where the arrays of the run are.
  const MlaDecodePlan::Indices& planned_indices() const {
    const bool same_device = plan->device_id == problem.device_id || !problem.on_cuda();
    if (plan->device_type == problem.device_type && same_device) return plan->indices;
    if (problem.on_cuda() && plan->copies_id == problem.device_id) return plan->copies;
    const auto device = [](int32_t type, int32_t id) { return type == 2 ? "cuda:" + std::to_string(id) : std::string("cpu"); };
    value_error(f, "q_nope must be on the device of the plan", device(plan->device_type, plan->device_id),
                device(problem.device_type, problem.device_id));
  }

  void options() {
    if (p.softmax_aux) {
      problem.sinks = sinks_view(f, *p.softmax_aux, problem.heads_q);
      problem.options |= kSinks;
    }
    problem.softmax_scale = plan ? plan->softmax_scale : checked_scale(f, p.softmax_scale);
    if (p.has_logits_soft_cap) {
      problem.softcap = checked_cap(f, p.logits_soft_cap);
      problem.options |= kSoftcap;
    }
    problem.causal = plan ? plan->causal : p.causal != 0;
    problem.alignment = Alignment::bottom_right;
    if (problem.causal) problem.options |= kCausal;
    if (p.return_lse) problem.options |= kLse;
    if (p.lse_base_2) problem.lse_scale = 1.4426950408889634;
  }
};

struct PlanValidator {
  const attile_mla_plan_params& p;
  const char* f = "BatchMLAPagedAttentionWrapper.plan";
  MlaDecodePlan plan;

  IndexView index(const char* name, const attile_tensor* t) {
    if (!t) type_error(f, std::string(name) + " is required", "an array", "none");
    check_place(f, name, *t);
    check_device(f, name, *t, "qo_indptr", *p.qo_indptr);
    return index_view(f, name, *t);
  }

  // First 0, never decreasing.
  void check_offsets(const char* name, const IndexView& x) {
    for (int64_t i = 0; i < x.size; ++i) {
      if (i == 0 && x[0] != 0) value_error(f, std::string(name) + "[0] must be zero", int64_t{0}, x[0]);
      if (i > 0 && x[i] < x[i - 1]) value_error(f, entry(name, i) + " must not decrease", "at least " + std::to_string(x[i - 1]), x[i]);
    }
  }

  // What shapes tell.
  void shapes() {
    MlaDecodePlan::Indices& x = plan.indices;
    x.qo_indptr = index("qo_indptr", p.qo_indptr);
    x.kv_indptr = index("kv_indptr", p.kv_indptr);
    x.pages = index("kv_indices", p.kv_indices);
    x.kv_lens = index("kv_len_arr", p.kv_len_arr);
    for (const auto& [name, list] : {std::pair{"qo_indptr", x.qo_indptr}, std::pair{"kv_indptr", x.kv_indptr}})
      if (list.size < 1) value_error(f, std::string(name) + " must have at least one entry", "length batch + 1", list.size);
    plan.device_type = p.qo_indptr->device_type;
    plan.device_id = p.qo_indptr->device_id;
    plan.batch = x.qo_indptr.size - 1;
    if (plan.device_type == 1) check_offsets("qo_indptr", x.qo_indptr), check_offsets("kv_indptr", x.kv_indptr);
    if (x.kv_indptr.size != plan.batch + 1) value_error(f, "kv_indptr.shape[0] must equal qo_indptr.shape[0]", plan.batch + 1, x.kv_indptr.size);
    if (x.kv_lens.size != plan.batch) value_error(f, "kv_len_arr.shape[0] must be the batch size, qo_indptr.shape[0] - 1", plan.batch, x.kv_lens.size);
    plan.longest_k = x.pages.size * plan.page_size;
  }

  void scalars() {
    plan.heads = p.num_heads;
    plan.latent = p.head_dim_ckv;
    plan.rope = p.head_dim_kpe;
    plan.page_size = p.page_size;
    if (plan.heads < 0) value_error(f, "num_heads must not be negative", "0 or more", plan.heads);
    check_dim(f, "head_dim_ckv", plan.latent, kMaxLatent);
    if (plan.rope != 0) check_dim(f, "head_dim_kpe", plan.rope, kMaxRope);
    if (plan.page_size < 1) value_error(f, "page_size is out of range", "1 or more", plan.page_size);
    plan.causal = p.causal != 0;
    plan.softmax_scale = p.softmax_scale;
    if (!std::isfinite(p.softmax_scale)) value_error(f, "sm_scale must be finite", "a finite number", p.softmax_scale);
    plan.dtype = dtype_of(p.q_dtype);
    if (plan.dtype == DType::none || !is_floating(plan.dtype) || plan.dtype == DType::f8e4m3)
      type_error(f, "q_data_type is unsupported", "float64, float32, float16 or bfloat16", name_of(p.q_dtype));
    const DType kv = dtype_of(p.kv_dtype);
    if (kv == DType::f8e4m3)
      throw Error(ATTILE_NOT_IMPLEMENTED, std::string(f) + ": kv_data_type float8_e4m3 is for mla_decode, which takes its scale");
    if (kv != plan.dtype) type_error(f, "kv_data_type must equal q_data_type", info(plan.dtype).name, name_of(p.kv_dtype));
  }

  // The numbers, on the host: checked, then copied.
  void numbers() {
    MlaDecodePlan::Indices& x = plan.indices;
    const int64_t batch = plan.batch, used = x.kv_indptr[batch];
    if (used > x.pages.size) value_error(f, "kv_indptr[-1] must be at most kv_indices.shape[0]", "at most " + std::to_string(x.pages.size), used);
    std::vector<int64_t> pages(used, 0);  // those that no length reaches stay 0
    plan.longest_k = plan.longest_q = 0;
    plan.queries = x.qo_indptr[batch];
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t length = x.kv_lens[b], first = x.kv_indptr[b], most = (x.kv_indptr[b + 1] - first) * plan.page_size;
      if (length < 0 || length > most) value_error(f, entry("kv_len_arr", b) + " is out of range", "0 to " + std::to_string(most), length);
      plan.longest_k = std::max(plan.longest_k, length);
      plan.longest_q = std::max(plan.longest_q, x.qo_indptr[b + 1] - x.qo_indptr[b]);
      for (int64_t n = first; (n - first) * plan.page_size < length; ++n) {
        pages[n] = x.pages[n];
        if (pages[n] < 0 || pages[n] > INT32_MAX) value_error(f, entry("kv_indices", n) + " is out of range", "0 or more", pages[n]);
        plan.largest_page = std::max(plan.largest_page, pages[n]);
      }
    }
    plan.storage.reserve(3 * batch + 2 + used);
    for (IndexView* list : {&x.qo_indptr, &x.kv_indptr, &x.kv_lens})
      for (int64_t i = 0; i < list->size; ++i) plan.storage.push_back((*list)[i]);
    plan.storage.insert(plan.storage.end(), pages.begin(), pages.end());
    x.pages.size = used;
    plan.indices = indices_in(plan, reinterpret_cast<const char*>(plan.storage.data()), false);
  }
};

}  // namespace

MlaDecodeProblem validate(const attile_mla_decode_params& params, const MlaDecodePlan* plan) {
  Validator v{params, plan};
  v.arrays();
  v.ranks_and_dtypes();
  v.shapes();
  if (plan) {
    v.planned_sequences();
  } else {
    v.sequences();
  }
  v.options();
  return v.problem;
}

MlaDecodePlan validate(const attile_mla_plan_params& params) {
  PlanValidator v{params, "BatchMLAPagedAttentionWrapper.plan", {}};
  v.scalars();
  v.shapes();
  if (v.plan.device_type == 1) v.numbers();
  return std::move(v.plan);
}

MlaDecodePlan::Indices indices_in(const MlaDecodePlan& plan, const char* storage, bool on_device) {
  MlaDecodePlan::Indices x = plan.indices;
  for (IndexView* list : {&x.qo_indptr, &x.kv_indptr, &x.kv_lens, &x.pages}) {
    *list = {storage, DType::i64, list->size, 1, on_device};
    storage += list->size * 8;
  }
  return x;
}

}  // namespace attile
