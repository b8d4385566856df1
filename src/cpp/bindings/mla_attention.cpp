// mla_attention from Python: its arguments, in the order in which python/attile/mla.py passes them.
#include "bindings/bindings.hpp"
#include "bindings/options.hpp"
#include "bindings/recipe.hpp"

namespace attile::python {
namespace {

constexpr const char* kFunction = "mla_attention";
constexpr Where where(const char* argument) { return {kFunction, argument}; }

enum Argument : Py_ssize_t {
  kQuery, kKeyValue, kWkc, kWvc, kBq, kBk, kCuSeqlens, kSoftmaxScale, kCausal, kCausalAlignment, kAttentionMask, kBias, kSoftmaxAux,
  kLogitsSoftCap, kSlidingWindow, kDropoutProb, kDropoutSeed, kReturnLse, kOut, kPlatform, kCfg, kArgumentCount
};

constexpr Choice kStrategies[] = {{"rebuild", ATTILE_MLA_REBUILD}, {"absorb", ATTILE_MLA_ABSORB}};

struct Arguments {
  Call call;
  attile_mla_attention_params params{};
  const Borrowed* out = nullptr;
  py::object kernel;  // owns params.config.kernel

  explicit Arguments(PyObject* const* given) : call(kFunction, given[kOut] != Py_None, given[kDropoutSeed] == Py_None) {
    params.struct_size = sizeof params;
    params.query = call.required(given[kQuery], "query");
    params.key_value = call.required(given[kKeyValue], "key_value");
    params.w_kc = call.required(given[kWkc], "w_kc");
    params.w_vc = call.required(given[kWvc], "w_vc");
    params.b_q = call.array(given[kBq], "b_q");
    params.b_k = call.array(given[kBk], "b_k");
    params.cu_seqlens = call.index_array(given[kCuSeqlens], "cu_seqlens");
    params.attention_mask = call.array(given[kAttentionMask], "attention_mask");
    params.bias = call.array(given[kBias], "bias");
    params.softmax_aux = call.array(given[kSoftmaxAux], "softmax_aux");
    scalars(given);
    params.config = flash_mla_config(given[kCfg], kFunction, kernel);
    if (given[kCfg] != Py_None) {
      const py::object strategy = py::handle(given[kCfg]).attr("strategy");
      if (!strategy.is_none()) params.strategy = choice(strategy.ptr(), where("cfg.strategy"), kStrategies);
    }
    out = call.output(given[kOut], "out");
  }

  void scalars(PyObject* const* given) {
    const OptionalNumber scale = optional_number(given[kSoftmaxScale], where("softmax_scale"));
    params.has_softmax_scale = scale.given;
    params.softmax_scale = scale.value;
    params.causal = boolean(given[kCausal], where("causal"));
    params.causal_alignment = choice(given[kCausalAlignment], where("causal_alignment"), kAlignments);
    const OptionalNumber cap = optional_number(given[kLogitsSoftCap], where("logits_soft_cap"));
    params.has_logits_soft_cap = cap.given;
    params.logits_soft_cap = cap.value;
    const Window sliding = window(given[kSlidingWindow], where("sliding_window"));
    params.has_sliding_window = sliding.given;
    params.window_left = sliding.left;
    params.window_right = sliding.right;
    params.dropout_prob = number(given[kDropoutProb], where("dropout_prob"));
    params.has_dropout_seed = given[kDropoutSeed] != Py_None;
    if (params.has_dropout_seed) params.dropout_seed = unsigned_integer(given[kDropoutSeed], where("dropout_seed"));
    params.return_lse = boolean(given[kReturnLse], where("return_lse"));
    params.platform = choice(given[kPlatform], where("platform"), kPlatforms);
  }

  Operation create() const {
    attile_op* op = nullptr;
    check(attile_mla_attention_create(&params, &op));
    return Operation(op);
  }
};

PyObject* mla_attention(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    check_count("_core.mla_attention", count, kArgumentCount);
    const Arguments arguments(given);
    return run(arguments);
  });
}

PyObject* explain_mla_attention(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    check_count("_core.explain_mla_attention", count, kArgumentCount);
    const Arguments arguments(given);
    return explain(arguments.create(), arguments.out);
  });
}

PyMethodDef functions[] = {
    {"mla_attention", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&mla_attention)), METH_FASTCALL,
     "mla_attention with every argument given by position, in the order of attile.mla_attention."},
    {"explain_mla_attention", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&explain_mla_attention)), METH_FASTCALL,
     "What mla_attention would do with these arguments, as JSON."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void register_mla_attention(py::module_& m) { add_functions(m, functions); }

}  // namespace attile::python
