// mla_attention from Python: its arguments, in the order in which python/attile/mla.py passes them.
#include "bindings/bindings.hpp"
#include "bindings/mla_attention_arguments.hpp"
#include "bindings/recipe.hpp"

namespace attile::python {
namespace mla_attention_call {
namespace {

constexpr const char* kFunction = "mla_attention";

enum Argument : Py_ssize_t {
  kQuery, kKeyValue, kWkc, kWvc, kBq, kBk, kCuSeqlens, kSoftmaxScale, kCausal, kCausalAlignment, kAttentionMask, kBias, kSoftmaxAux,
  kLogitsSoftCap, kSlidingWindow, kDropoutProb, kDropoutSeed, kReturnLse, kOut, kPlatform, kCfg, kArgumentCount
};

struct Arguments : MlaAttentionArguments<attile_mla_attention_params> {
  const Borrowed* out = nullptr;

  explicit Arguments(PyObject* const* given)
      : MlaAttentionArguments(kFunction, given[kOut] != Py_None, given[kDropoutSeed] == Py_None) {
    arrays({given[kQuery], given[kKeyValue], given[kWkc], given[kWvc], given[kBq], given[kBk], given[kCuSeqlens], given[kAttentionMask],
            given[kBias], given[kSoftmaxAux]});
    options({given[kSoftmaxScale], given[kCausal], given[kCausalAlignment], given[kLogitsSoftCap], given[kSlidingWindow], given[kDropoutProb],
             given[kDropoutSeed], given[kPlatform], given[kCfg]});
    params.return_lse = boolean(given[kReturnLse], where("return_lse"));
    out = call.output(given[kOut], "out");
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
}  // namespace mla_attention_call

void register_mla_attention(py::module_& m) { add_functions(m, mla_attention_call::functions); }

}  // namespace attile::python
