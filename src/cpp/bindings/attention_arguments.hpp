// What flash_attention and its gradients read alike from Python: masks, bundled or not, and the options that are no arrays.
#pragma once

#include <string>

#include "bindings/operation.hpp"
#include "bindings/options.hpp"

namespace attile::python {

inline constexpr Choice kPrecisions[] = {
    {"highest", ATTILE_PRECISION_HIGHEST}, {"high", ATTILE_PRECISION_HIGH}, {"default", ATTILE_PRECISION_DEFAULT}};

struct NamedDType {
  const char* name;
  attile_dtype dtype;
};
inline constexpr NamedDType kLogitsDTypes[] = {
    {"float64", {2, 64, 1}}, {"float32", {2, 32, 1}}, {"float16", {2, 16, 1}}, {"bfloat16", {4, 16, 1}}};

template <class Params>
struct AttentionArguments {
  struct Options {
    PyObject *softmax_scale, *dropout_prob, *causal, *causal_alignment, *dropout_seed, *sliding_window, *logits_soft_cap, *precision,
        *logits_dtype, *platform, *cfg;
  };

  Call call;
  Params params{};
  py::object mask_info_fields[3];
  py::object kernel;  // owns params.config.kernel

  AttentionArguments(const char* function, bool in_place, bool deferrable) : call(function, in_place, deferrable) {
    params.struct_size = sizeof params;
  }

  Where where(const char* argument) const { return {call.function(), argument}; }

  void masks(PyObject* info, PyObject* mask, PyObject* q_ids, PyObject* kv_ids) {
    if (info != Py_None) {
      mask_info(info, 0, "attention_mask", mask);
      mask_info(info, 1, "q_segment_ids", q_ids);
      mask_info(info, 2, "kv_segment_ids", kv_ids);
    }
    params.attention_mask = call.array(mask, "attention_mask");
    params.q_segment_ids = call.index_array(q_ids, "q_segment_ids");
    params.kv_segment_ids = call.index_array(kv_ids, "kv_segment_ids");
  }

  void options(const Options& given) {
    const OptionalNumber scale = optional_number(given.softmax_scale, where("softmax_scale"));
    params.has_softmax_scale = scale.given;
    params.softmax_scale = scale.value;
    params.dropout_prob = number(given.dropout_prob, where("dropout_prob"));
    params.causal = boolean(given.causal, where("causal"));
    params.causal_alignment = choice(given.causal_alignment, where("causal_alignment"), kAlignments);
    params.has_dropout_seed = given.dropout_seed != Py_None;
    if (params.has_dropout_seed) params.dropout_seed = unsigned_integer(given.dropout_seed, where("dropout_seed"));
    const OptionalNumber cap = optional_number(given.logits_soft_cap, where("logits_soft_cap"));
    params.has_logits_soft_cap = cap.given;
    params.logits_soft_cap = cap.value;
    params.precision = precision(given.precision);
    params.platform = choice(given.platform, where("platform"), kPlatforms);
    const Window sliding = window(given.sliding_window, where("sliding_window"));
    params.has_sliding_window = sliding.given;
    params.window_left = sliding.left;
    params.window_right = sliding.right;
    if (given.logits_dtype != Py_None) params.logits_dtype = logits_dtype(given.logits_dtype);
    params.config = flash_attention_config(given.cfg, call.function(), kernel);
  }

 private:
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

  // Helpers of options.py read what a library spells in its own way.
  py::object ask_options(const char* helper, PyObject* value) const {
    return py::module_::import("attile.options").attr(helper)(call.function(), py::handle(value));
  }

  int32_t precision(PyObject* value) const {
    if (value == Py_None) return ATTILE_PRECISION_HIGHEST;
    const int32_t found = choice_or_none(value, where("precision"), kPrecisions);
    return found >= 0 ? found : choice(ask_options("precision_name", value).ptr(), where("precision"), kPrecisions);
  }

  attile_dtype logits_dtype(PyObject* value) const {
    const std::string name = ask_options("dtype_name", value).template cast<std::string>();
    for (const NamedDType& row : kLogitsDTypes)
      if (name == row.name) return row.dtype;
    refuse(PyExc_TypeError, where("logits_dtype"), " is unsupported", "float32, float64, bfloat16 or float16", name);
  }
};

}  // namespace attile::python
