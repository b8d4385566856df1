// flash_attention from Python: its arguments, in the order in which python/attile/flash.py passes them, to the parameters of
// the C interface. Values of arrays and scalars are judged there; here, whether an argument is of the right kind.
#include <cstring>
#include <string>

#include "bindings/bindings.hpp"
#include "bindings/numpy.hpp"
#include "bindings/recipe.hpp"
#include "bindings/options.hpp"

namespace attile::python {
namespace {

constexpr const char* kFunction = "flash_attention";
constexpr Where where(const char* argument) { return {kFunction, argument}; }

// clang-format off
enum Argument : Py_ssize_t {
  kQuery, kKey, kValue, kBias, kCumSeqlensQ, kCumSeqlensK, kSoftmaxAux, kMaskInfo, kAttentionMask, kSoftmaxScale, kDropoutProb, kCausal,
  kCausalAlignment, kDropoutSeed, kSlidingWindow, kLogitsSoftCap, kNormalizeOutput, kPrecision, kLogitsDtype, kQSegmentIds, kKvSegmentIds,
  kQScale, kKScale, kVScale, kReturnLse, kOut, kPlatform, kCfg, kArgumentCount
};
// clang-format on

constexpr Choice kPrecisions[] = {
    {"highest", ATTILE_PRECISION_HIGHEST}, {"high", ATTILE_PRECISION_HIGH}, {"default", ATTILE_PRECISION_DEFAULT}};

struct NamedDType {
  const char* name;
  attile_dtype dtype;
};
constexpr NamedDType kLogitsDTypes[] = {
    {"float64", {2, 64, 1}}, {"float32", {2, 32, 1}}, {"float16", {2, 16, 1}}, {"bfloat16", {4, 16, 1}}};

// Helpers of options.py read what a library spells in its own way.
py::object ask_options(const char* helper, PyObject* value) {
  return py::module_::import("attile.options").attr(helper)(kFunction, py::handle(value));
}

struct Arguments {
  Call call;
  attile_flash_attention_params params{};
  const Borrowed* out = nullptr;
  py::object mask_info_fields[3];
  py::object kernel;  // owns params.config.kernel
  float scales[3];
  attile_tensor scale_tensors[3];

  explicit Arguments(PyObject* const* given) : call(kFunction, given[kOut] != Py_None, given[kDropoutSeed] == Py_None) {
    params.struct_size = sizeof params;
    arrays(given);
    scalars(given);
    logits_dtype(given[kLogitsDtype]);
    params.config = flash_attention_config(given[kCfg], kFunction, kernel);
    out = call.output(given[kOut], "out");
  }

  void arrays(PyObject* const* given) {
    params.query = call.required(given[kQuery], "query");
    params.key = call.required(given[kKey], "key");
    params.value = call.required(given[kValue], "value");
    params.bias = call.array(given[kBias], "bias");
    params.cum_seqlens_q = call.index_array(given[kCumSeqlensQ], "cum_seqlens_q");
    params.cum_seqlens_k = call.index_array(given[kCumSeqlensK], "cum_seqlens_k");
    params.softmax_aux = call.array(given[kSoftmaxAux], "softmax_aux");
    PyObject* mask = given[kAttentionMask];
    PyObject* q_ids = given[kQSegmentIds];
    PyObject* kv_ids = given[kKvSegmentIds];
    if (given[kMaskInfo] != Py_None) {
      mask_info(given[kMaskInfo], 0, "attention_mask", mask);
      mask_info(given[kMaskInfo], 1, "q_segment_ids", q_ids);
      mask_info(given[kMaskInfo], 2, "kv_segment_ids", kv_ids);
    }
    params.attention_mask = call.array(mask, "attention_mask");
    params.q_segment_ids = call.index_array(q_ids, "q_segment_ids");
    params.kv_segment_ids = call.index_array(kv_ids, "kv_segment_ids");
    params.q_scale = scale(0, given[kQScale], "q_scale");
    params.k_scale = scale(1, given[kKScale], "k_scale");
    params.v_scale = scale(2, given[kVScale], "v_scale");
  }

  // Takes a field of mask_info, unless it is given as an argument of its own too.
  void mask_info(PyObject* info, int index, const char* field, PyObject*& value) {
    py::object& taken = mask_info_fields[index];
    taken = py::reinterpret_steal<py::object>(PyObject_GetAttrString(info, field));
    if (!taken) {
      if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw py::error_already_set();
      PyErr_Clear();
      refuse(PyExc_TypeError, where("mask_info"), " has the wrong type",
             std::string("attile.MaskInfo or an object with the attribute ") + field, type_name(info));
    }
    if (taken.is_none()) return;
    if (value != Py_None) refuse(PyExc_ValueError, where(field), " must be given once", "an argument or a field of mask_info", "both");
    value = taken.ptr();
  }

  const attile_tensor* scale(int index, PyObject* value, const char* name) {
    if (value == Py_None) return nullptr;
    if (!PyFloat_Check(value) && !PyLong_Check(value) && !numpy::is_scalar(value)) return call.array(value, name);
    scales[index] = static_cast<float>(number(value, where(name)));
    attile_tensor& t = scale_tensors[index];
    t.data = &scales[index];
    t.dtype = {2, 32, 1};
    t.device_type = 1;
    t.device_id = 0;
    t.rank = 0;
    return &t;
  }

  void scalars(PyObject* const* given) {
    const OptionalNumber scale = optional_number(given[kSoftmaxScale], where("softmax_scale"));
    params.has_softmax_scale = scale.given;
    params.softmax_scale = scale.value;
    params.dropout_prob = number(given[kDropoutProb], where("dropout_prob"));
    params.causal = boolean(given[kCausal], where("causal"));
    params.causal_alignment = choice(given[kCausalAlignment], where("causal_alignment"), kAlignments);
    params.has_dropout_seed = given[kDropoutSeed] != Py_None;
    if (params.has_dropout_seed) params.dropout_seed = unsigned_integer(given[kDropoutSeed], where("dropout_seed"));
    const OptionalNumber cap = optional_number(given[kLogitsSoftCap], where("logits_soft_cap"));
    params.has_logits_soft_cap = cap.given;
    params.logits_soft_cap = cap.value;
    params.normalize_output = boolean(given[kNormalizeOutput], where("normalize_output"));
    params.precision = precision(given[kPrecision]);
    params.return_lse = boolean(given[kReturnLse], where("return_lse"));
    params.platform = choice(given[kPlatform], where("platform"), kPlatforms);
    const Window sliding = window(given[kSlidingWindow], where("sliding_window"));
    params.has_sliding_window = sliding.given;
    params.window_left = sliding.left;
    params.window_right = sliding.right;
  }

  int32_t precision(PyObject* value) {
    if (value == Py_None) return ATTILE_PRECISION_HIGHEST;
    const int32_t found = choice_or_none(value, where("precision"), kPrecisions);
    return found >= 0 ? found : choice(ask_options("precision_name", value).ptr(), where("precision"), kPrecisions);
  }

  void logits_dtype(PyObject* value) {
    if (value == Py_None) return;
    const std::string name = ask_options("dtype_name", value).cast<std::string>();
    for (const NamedDType& row : kLogitsDTypes)
      if (name == row.name) {
        params.logits_dtype = row.dtype;
        return;
      }
    refuse(PyExc_TypeError, where("logits_dtype"), " is unsupported", "float32, float64, bfloat16 or float16", name);
  }

  Operation create() const {
    attile_op* op = nullptr;
    check(attile_flash_attention_create(&params, &op));
    return Operation(op);
  }
};

PyObject* flash_attention(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    check_count("_core.flash_attention", count, kArgumentCount);
    const Arguments arguments(given);
    return run(arguments);
  });
}

PyObject* explain_flash_attention(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    check_count("_core.explain_flash_attention", count, kArgumentCount);
    const Arguments arguments(given);
    return explain(arguments.create(), arguments.out);
  });
}

PyMethodDef functions[] = {
    {"flash_attention", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&flash_attention)), METH_FASTCALL,
     "flash_attention with every argument given by position, in the order of attile.flash_attention."},
    {"explain_flash_attention", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&explain_flash_attention)), METH_FASTCALL,
     "What flash_attention would do with these arguments, as JSON."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void register_flash_attention(py::module_& m) { add_functions(m, functions); }

}  // namespace attile::python
