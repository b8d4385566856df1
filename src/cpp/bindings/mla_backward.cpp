// mla_attention_backward from Python: its arguments, in the order in which python/attile/mla_backward.py passes them.
#include "bindings/bindings.hpp"
#include "bindings/mla_attention_arguments.hpp"

namespace attile::python {
namespace mla_backward_call {
namespace {

constexpr const char* kFunction = "mla_attention_backward";

// clang-format off
enum Argument : Py_ssize_t {
  kDout, kQuery, kKeyValue, kWkc, kWvc, kOut, kLse, kBq, kBk, kCuSeqlens, kDlse, kSoftmaxScale, kCausal, kCausalAlignment, kAttentionMask,
  kBias, kSoftmaxAux, kLogitsSoftCap, kSlidingWindow, kDropoutProb, kDropoutSeed, kDeterministic, kPlatform, kCfg, kArgumentCount
};
// clang-format on

struct Arguments : MlaAttentionArguments<attile_mla_attention_backward_params> {
  explicit Arguments(PyObject* const* given) : MlaAttentionArguments(kFunction, false, false) {
    params.dout = call.required(given[kDout], "dout");
    arrays({given[kQuery], given[kKeyValue], given[kWkc], given[kWvc], given[kBq], given[kBk], given[kCuSeqlens], given[kAttentionMask],
            given[kBias], given[kSoftmaxAux]});
    params.out = call.required(given[kOut], "out");
    params.lse = call.required(given[kLse], "lse");
    params.dlse = call.array(given[kDlse], "dlse");
    options({given[kSoftmaxScale], given[kCausal], given[kCausalAlignment], given[kLogitsSoftCap], given[kSlidingWindow], given[kDropoutProb],
             given[kDropoutSeed], given[kPlatform], given[kCfg]});
    params.deterministic = boolean(given[kDeterministic], where("deterministic"));
  }

  Operation create() const {
    attile_op* op = nullptr;
    check(attile_mla_attention_backward_create(&params, &op));
    return Operation(op);
  }
};

PyObject* mla_attention_backward(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    check_count("_core.mla_attention_backward", count, kArgumentCount);
    const Arguments arguments(given);
    return run(arguments.create(), arguments.call, nullptr);
  });
}

PyObject* explain_mla_attention_backward(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    check_count("_core.explain_mla_attention_backward", count, kArgumentCount);
    const Arguments arguments(given);
    return explain(arguments.create(), nullptr);
  });
}

PyMethodDef functions[] = {
    {"mla_attention_backward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&mla_attention_backward)), METH_FASTCALL,
     "The gradients as a tuple of those that exist; every argument by position, in the order of attile.mla_attention_backward."},
    {"explain_mla_attention_backward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&explain_mla_attention_backward)),
     METH_FASTCALL, "What mla_attention_backward would do with these arguments, as JSON."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace
}  // namespace mla_backward_call

void register_mla_backward(py::module_& m) { add_functions(m, mla_backward_call::functions); }

}  // namespace attile::python
