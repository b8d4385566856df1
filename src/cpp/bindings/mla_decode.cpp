// mla_decode, the wrapper's plan and run, and append_paged_mla_kv_cache from Python: their arguments, in the order in which
// python/attile/mla.py and mla_wrapper.py pass them, to the parameters of the C interface.
#include <optional>
#include <string>

#include "bindings/bindings.hpp"
#include "bindings/options.hpp"
#include "bindings/recipe.hpp"

namespace attile::python {
namespace mla_decode_call {
namespace {

struct DType {
  const char* name;
  attile_dtype dtype;
};
constexpr DType kDTypes[] = {
    {"float64", {2, 64, 1}}, {"float32", {2, 32, 1}}, {"float16", {2, 16, 1}}, {"bfloat16", {4, 16, 1}}, {"float8_e4m3fn", {10, 8, 1}}};

Operation create(const attile_mla_decode_params& params) {
  attile_op* op = nullptr;
  check(attile_mla_decode_create(&params, &op));
  return Operation(op);
}

// ---- mla_decode ------------------------------------------------------------------------------------------------------------

constexpr const char* kFunction = "mla_decode";
constexpr Where where(const char* argument) { return {kFunction, argument}; }

enum Argument : Py_ssize_t {
  kQNope,
  kQPe,
  kCkv,
  kKpe,
  kSoftmaxScale,
  kCausal,
  kKvLens,
  kPageTable,
  kCkvScale,
  kSoftmaxAux,
  kLogitsSoftCap,
  kReturnLse,
  kOut,
  kNumSplits,
  kPlatform,
  kCfg,
  kArgumentCount
};

struct Arguments {
  Call call;
  attile_mla_decode_params params{};
  const Borrowed* out = nullptr;
  py::object kernel;  // owns params.config.kernel
  float scale = 1;
  attile_tensor scale_tensor{};

  explicit Arguments(PyObject* const* given) : call(kFunction, given[kOut] != Py_None, true) {
    params.struct_size = sizeof params;
    params.q_nope = call.required(given[kQNope], "q_nope");
    params.q_pe = call.array(given[kQPe], "q_pe");
    params.ckv = call.required(given[kCkv], "ckv");
    params.kpe = call.array(given[kKpe], "kpe");
    params.kv_lens = call.index_array(given[kKvLens], "kv_lens");
    params.page_table = call.index_array(given[kPageTable], "page_table");
    params.softmax_aux = call.array(given[kSoftmaxAux], "softmax_aux");
    params.softmax_scale = number(given[kSoftmaxScale], where("softmax_scale"));
    params.causal = boolean(given[kCausal], where("causal"));
    const OptionalNumber cap = optional_number(given[kLogitsSoftCap], where("logits_soft_cap"));
    params.has_logits_soft_cap = cap.given;
    params.logits_soft_cap = cap.value;
    params.return_lse = boolean(given[kReturnLse], where("return_lse"));
    params.platform = choice(given[kPlatform], where("platform"), kPlatforms);
    latent_scale(given[kCkvScale]);
    config(given[kCfg], given[kNumSplits]);
    out = call.output(given[kOut], "out");
  }

  Operation create() const { return mla_decode_call::create(params); }

  void latent_scale(PyObject* value) {
    if (value == Py_None) return;
    scale = static_cast<float>(number(value, where("ckv_scale")));
    scale_tensor.data = &scale;
    scale_tensor.dtype = {2, 32, 1};
    scale_tensor.device_type = 1;
    scale_tensor.device_id = params.q_nope->device_type == 1 ? params.q_nope->device_id : 0;
    params.ckv_scale = &scale_tensor;
  }

  void config(PyObject* cfg, PyObject* num_splits) {
    params.config = flash_mla_config(cfg, kFunction, kernel);
    if (cfg != Py_None) {
      const py::object strategy = py::handle(cfg).attr("strategy");
      if (!strategy.is_none() && !(PyUnicode_Check(strategy.ptr()) && PyUnicode_CompareWithASCIIString(strategy.ptr(), "absorb") == 0))
        refuse(PyExc_ValueError, where("cfg.strategy"), " must be that of mla_decode", "None or 'absorb'", py::repr(strategy));
    }
    const int64_t splits = integer(num_splits, where("num_splits"));
    if (splits < 0)
      refuse(PyExc_ValueError, where("num_splits"), " must not be negative", "0 (the heuristic decides) or more", std::to_string(splits));
    if (splits != 0 && params.config.num_splits != 0 && splits != params.config.num_splits)
      refuse(PyExc_ValueError, where("num_splits"), " must be given once", "an argument or a field of cfg", "both");
    if (splits != 0) params.config.num_splits = splits;
  }
};

PyObject* mla_decode(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    check_count("_core.mla_decode", count, kArgumentCount);
    const Arguments arguments(given);
    return run(arguments);
  });
}

PyObject* explain_mla_decode(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    check_count("_core.explain_mla_decode", count, kArgumentCount);
    const Arguments arguments(given);
    return explain(create(arguments.params), arguments.out);
  });
}

// ---- the wrapper -----------------------------------------------------------------------------------------------------------

constexpr const char* kPlan = "BatchMLAPagedAttentionWrapper.plan";
constexpr const char* kRun = "BatchMLAPagedAttentionWrapper.run";
constexpr const char* kCapsule = "attile_mla_plan";

struct PlanOfBatch {
  attile_mla_plan* plan = nullptr;
  py::object arrays[4];  // index arrays on a device, which it refers to
  // Of index arrays on the host, their copy on a device, which was queued on this stream.
  py::object memory;
  int32_t device = 0;
  void* stream = nullptr;

  PlanOfBatch() = default;
  PlanOfBatch(const PlanOfBatch&) = delete;
  PlanOfBatch& operator=(const PlanOfBatch&) = delete;
  ~PlanOfBatch() { attile_mla_plan_destroy(plan); }
};

PlanOfBatch& plan_in(PyObject* capsule) {
  auto* plan = static_cast<PlanOfBatch*>(PyCapsule_GetPointer(capsule, kCapsule));
  if (!plan) throw py::error_already_set();
  return *plan;
}

attile_dtype dtype_named(PyObject* name, const char* argument) {
  for (const DType& row : kDTypes)
    if (PyUnicode_CompareWithASCIIString(name, row.name) == 0) return row.dtype;
  refuse(PyExc_TypeError, {kPlan, argument}, " is unsupported", "float64, float32, float16 or bfloat16", py::str(py::handle(name)));
}

enum PlanArgument : Py_ssize_t {
  kQoIndptr,
  kKvIndptr,
  kKvIndices,
  kKvLenArr,
  kNumHeads,
  kHeadDimCkv,
  kHeadDimKpe,
  kPageSize,
  kPlanCausal,
  kSmScale,
  kQDType,
  kKvDType,
  kPlanArgumentCount
};

PyObject* mla_plan(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    check_count("_core.mla_plan", count, kPlanArgumentCount);
    Call call(kPlan, false);
    attile_mla_plan_params params{};
    params.struct_size = sizeof params;
    params.qo_indptr = call.required(given[kQoIndptr], "qo_indptr");
    params.kv_indptr = call.index_array(given[kKvIndptr], "kv_indptr");
    params.kv_indices = call.index_array(given[kKvIndices], "kv_indices");
    params.kv_len_arr = call.index_array(given[kKvLenArr], "kv_len_arr");
    params.num_heads = integer(given[kNumHeads], {kPlan, "num_heads"});
    params.head_dim_ckv = integer(given[kHeadDimCkv], {kPlan, "head_dim_ckv"});
    params.head_dim_kpe = integer(given[kHeadDimKpe], {kPlan, "head_dim_kpe"});
    params.page_size = integer(given[kPageSize], {kPlan, "page_size"});
    params.causal = boolean(given[kPlanCausal], {kPlan, "causal"});
    params.softmax_scale = number(given[kSmScale], {kPlan, "sm_scale"});
    params.q_dtype = dtype_named(given[kQDType], "q_data_type");
    params.kv_dtype = dtype_named(given[kKvDType], "kv_data_type");
    auto plan = std::make_unique<PlanOfBatch>();
    check(attile_mla_plan_create(&params, &plan->plan));
    if (params.qo_indptr->device_type == 2)
      for (Py_ssize_t i = kQoIndptr; i <= kKvLenArr; ++i) plan->arrays[i] = py::reinterpret_borrow<py::object>(given[i]);
    PyObject* capsule = PyCapsule_New(plan.get(), kCapsule, [](PyObject* c) { delete static_cast<PlanOfBatch*>(PyCapsule_GetPointer(c, kCapsule)); });
    if (!capsule) throw py::error_already_set();
    plan.release();
    return capsule;
  });
}

enum RunArgument : Py_ssize_t {
  kPlanned,
  kRunQNope,
  kRunQPe,
  kCkvCache,
  kKpeCache,
  kRunOut,
  kRunLse,
  kRunReturnLse,
  kLseBaseE,
  kWorkspace,
  kRunArgumentCount
};

std::string device_name(const attile_tensor& t) { return t.device_type == 1 ? "cpu" : "cuda:" + std::to_string(t.device_id); }

// The caller's scratch; null: the library's own.
void* workspace_of(Call& call, PyObject* buffer, const attile_op* op) {
  const Borrowed* borrowed = call.output(buffer, "float_workspace_buffer");
  if (!borrowed) return nullptr;
  const attile_tensor &t = borrowed->tensor, &first = call.first().tensor;
  if (t.device_type != first.device_type || t.device_id != first.device_id)
    refuse(PyExc_ValueError, {kRun, "float_workspace_buffer"}, " must be on the device of q_nope", device_name(first), device_name(t));
  int64_t bytes = t.dtype.bits / 8, stride = 1;
  for (int32_t d = t.rank - 1; d >= 0; --d) {
    if (t.shape[d] > 1 && t.strides[d] != stride)
      refuse(PyExc_ValueError, {kRun, "float_workspace_buffer"}, " must be contiguous", "C order", "strides with gaps");
    stride *= t.shape[d];
    bytes *= t.shape[d];
  }
  const int64_t needed = static_cast<int64_t>(attile_op_workspace_bytes(op));
  if (bytes < needed)
    refuse(PyExc_ValueError, {kRun, "float_workspace_buffer"}, " is too small", "at least " + std::to_string(needed) + " bytes",
           std::to_string(bytes));
  return t.data;
}

// A plan of host arrays, to CUDA: once, or for another stream again, since nothing orders that one after the copy.
void bring_to_device(PlanOfBatch& plan, const Call& call) {
  const Borrowed& q = call.first();
  const size_t bytes = q.tensor.device_type == 2 ? attile_mla_plan_device_bytes(plan.plan) : 0;
  if (bytes == 0) return;
  void* stream = current_stream(q);
  if (plan.memory && plan.device == q.tensor.device_id && plan.stream == stream) return;
  attile_tensor spec = bytes_beside(q, bytes);
  Result memory(spec, q, kRun);
  check(attile_mla_plan_to_device(plan.plan, spec.device_id, spec.data, stream));
  plan.memory = memory.finish();
  plan.device = spec.device_id;
  plan.stream = stream;
}

PyObject* mla_run(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    check_count("_core.mla_run", count, kRunArgumentCount);
    Call call(kRun, given[kRunOut] != Py_None || given[kRunLse] != Py_None);
    attile_mla_decode_params params{};
    params.struct_size = sizeof params;
    PlanOfBatch& plan = plan_in(given[kPlanned]);
    params.plan = plan.plan;
    params.q_nope = call.required(given[kRunQNope], "q_nope");
    params.q_pe = call.array(given[kRunQPe], "q_pe");
    params.ckv = call.required(given[kCkvCache], "ckv_cache");
    params.kpe = call.array(given[kKpeCache], "kpe_cache");
    const bool wants_lse = boolean(given[kRunReturnLse], {kRun, "return_lse"});
    params.return_lse = wants_lse || given[kRunLse] != Py_None;
    params.lse_base_2 = !boolean(given[kLseBaseE], {kRun, "return_lse_base_on_e"});
    const Borrowed* outputs[2] = {call.output(given[kRunOut], "out"), call.output(given[kRunLse], "lse")};
    bring_to_device(plan, call);
    Operation op = create(params);
    void* workspace = workspace_of(call, given[kWorkspace], op.get());
    return run(std::move(op), call, Given{{outputs[0], outputs[1]}, workspace, wants_lse ? 2 : 1});
  });
}

// ---- append_paged_mla_kv_cache ---------------------------------------------------------------------------------------------

constexpr const char* kAppend = "append_paged_mla_kv_cache";

enum AppendArgument : Py_ssize_t {
  kAppendCkv,
  kAppendKpe,
  kBatchIndices,
  kPositions,
  kAppendCkvCache,
  kAppendKpeCache,
  kAppendKvIndices,
  kAppendKvIndptr,
  kLastPageLen,
  kFresh,
  kAppendArgumentCount
};

// Writes into the caches as they are; where a library's arrays are immutable, mla_wrapper.py gives it copies and says so (kFresh).
PyObject* append(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&]() -> PyObject* {
    check_count("_core.append_paged_mla_kv_cache", count, kAppendArgumentCount);
    Call call(kAppend, true);
    attile_append_paged_mla_kv_cache_params params{};
    params.struct_size = sizeof params;
    params.append_ckv = call.required(given[kAppendCkv], "append_ckv");
    params.append_kpe = call.required(given[kAppendKpe], "append_kpe");
    params.batch_indices = call.index_array(given[kBatchIndices], "batch_indices");
    params.positions = call.index_array(given[kPositions], "positions");
    params.kv_indices = call.index_array(given[kAppendKvIndices], "kv_indices");
    params.kv_indptr = call.index_array(given[kAppendKvIndptr], "kv_indptr");
    params.kv_last_page_len = call.index_array(given[kLastPageLen], "kv_last_page_len");
    const Borrowed* caches[2] = {nullptr, nullptr};
    if (given[kFresh] == Py_True) {
      params.ckv_cache = call.required(given[kAppendCkvCache], "ckv_cache");
      params.kpe_cache = call.required(given[kAppendKpeCache], "kpe_cache");
    } else {
      caches[0] = call.output(given[kAppendCkvCache], "ckv_cache"), caches[1] = call.output(given[kAppendKpeCache], "kpe_cache");
      params.ckv_cache = caches[0] ? &caches[0]->tensor : nullptr;
      params.kpe_cache = caches[1] ? &caches[1]->tensor : nullptr;
    }
    const Borrowed& first = call.first();
    void* stream = current_stream(first);
    check(attile_append_paged_mla_kv_cache(&params, stream));
    if (first.tensor.device_type == 2 && first.type->library.synchronizes) check(attile_cuda_synchronize(first.tensor.device_id, stream));
    mark_written(caches[0]);
    mark_written(caches[1]);
    Py_RETURN_NONE;
  });
}

using Fast = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);
PyCFunction as_method(Fast f) { return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f)); }

PyMethodDef functions[] = {
    {"mla_decode", as_method(mla_decode), METH_FASTCALL,
     "mla_decode with every argument given by position, in the order of attile.mla_decode."},
    {"explain_mla_decode", as_method(explain_mla_decode), METH_FASTCALL, "What mla_decode would do with these arguments, as JSON."},
    {"mla_plan", as_method(mla_plan), METH_FASTCALL, "The plan of a batch, as a capsule; dtypes by name."},
    {"mla_run", as_method(mla_run), METH_FASTCALL, "One run of a planned batch."},
    {"append_paged_mla_kv_cache", as_method(append), METH_FASTCALL, "append_paged_mla_kv_cache, by position, in place."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace
}  // namespace mla_decode_call

void register_mla_decode(py::module_& m) { add_functions(m, mla_decode_call::functions); }

}  // namespace attile::python
