// flash_attention_with_kvcache from Python: its arguments, in the order in which python/attile/kvcache.py passes them.
#include "bindings/bindings.hpp"
#include "bindings/options.hpp"
#include "bindings/recipe.hpp"

namespace attile::python {
namespace kvcache_call {
namespace {

constexpr const char* kFunction = "flash_attention_with_kvcache";
constexpr Where where(const char* argument) { return {kFunction, argument}; }

enum Argument : Py_ssize_t {
  kQ, kKCache, kVCache, kCacheSeqlens, kPageTable, kSoftmaxScale, kCausal, kSlidingWindow, kLogitsSoftCap, kSoftmaxAux, kNumSplits,
  kReturnLse, kOut, kPlatform, kCfg, kArgumentCount
};

struct Arguments {
  Call call;
  attile_flash_attention_with_kvcache_params params{};
  const Borrowed* out = nullptr;
  py::object kernel;  // owns params.config.kernel

  explicit Arguments(PyObject* const* given) : call(kFunction, given[kOut] != Py_None, true) {
    params.struct_size = sizeof params;
    params.q = call.required(given[kQ], "q");
    params.k_cache = call.required(given[kKCache], "k_cache");
    params.v_cache = call.required(given[kVCache], "v_cache");
    params.cache_seqlens = call.index_array(given[kCacheSeqlens], "cache_seqlens");
    params.page_table = call.index_array(given[kPageTable], "page_table");
    params.softmax_aux = call.array(given[kSoftmaxAux], "softmax_aux");
    const OptionalNumber scale = optional_number(given[kSoftmaxScale], where("softmax_scale"));
    params.has_softmax_scale = scale.given;
    params.softmax_scale = scale.value;
    params.causal = boolean(given[kCausal], where("causal"));
    const Window sliding = window(given[kSlidingWindow], where("sliding_window"));
    params.has_sliding_window = sliding.given;
    params.window_left = sliding.left;
    params.window_right = sliding.right;
    const OptionalNumber cap = optional_number(given[kLogitsSoftCap], where("logits_soft_cap"));
    params.has_logits_soft_cap = cap.given;
    params.logits_soft_cap = cap.value;
    params.num_splits = integer(given[kNumSplits], where("num_splits"));
    params.return_lse = boolean(given[kReturnLse], where("return_lse"));
    params.platform = choice(given[kPlatform], where("platform"), kPlatforms);
    params.config = flash_attention_config(given[kCfg], kFunction, kernel);
    out = call.output(given[kOut], "out");
  }

  Operation create() const {
    attile_op* op = nullptr;
    check(attile_flash_attention_with_kvcache_create(&params, &op));
    return Operation(op);
  }
};

PyObject* flash_attention_with_kvcache(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    check_count("_core.flash_attention_with_kvcache", count, kArgumentCount);
    const Arguments arguments(given);
    return run(arguments);
  });
}

PyObject* explain_flash_attention_with_kvcache(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    check_count("_core.explain_flash_attention_with_kvcache", count, kArgumentCount);
    const Arguments arguments(given);
    return explain(arguments.create(), arguments.out);
  });
}

PyMethodDef functions[] = {
    {"flash_attention_with_kvcache", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&flash_attention_with_kvcache)), METH_FASTCALL,
     "flash_attention_with_kvcache with every argument given by position, in the order of attile.flash_attention_with_kvcache."},
    {"explain_flash_attention_with_kvcache", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&explain_flash_attention_with_kvcache)),
     METH_FASTCALL, "What flash_attention_with_kvcache would do with these arguments, as JSON."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace
}  // namespace kvcache_call

void register_kvcache(py::module_& m) { add_functions(m, kvcache_call::functions); }

}  // namespace attile::python
