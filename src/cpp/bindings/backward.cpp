// flash_attention_backward from Python: its arguments, in the order in which python/attile/backward.py passes them.
#include "bindings/attention_arguments.hpp"
#include "bindings/bindings.hpp"

namespace attile::python {
namespace backward_call {
namespace {

constexpr const char* kFunction = "flash_attention_backward";

// clang-format off
enum Argument : Py_ssize_t {
  kDout, kQuery, kKey, kValue, kOut, kLse, kBias, kCumSeqlensQ, kCumSeqlensK, kSoftmaxAux, kDlse, kMaskInfo, kAttentionMask, kSoftmaxScale,
  kDropoutProb, kCausal, kCausalAlignment, kDropoutSeed, kSlidingWindow, kLogitsSoftCap, kPrecision, kLogitsDtype, kQSegmentIds,
  kKvSegmentIds, kDeterministic, kPlatform, kCfg, kArgumentCount
};
// clang-format on

struct Arguments : AttentionArguments<attile_flash_attention_backward_params> {
  explicit Arguments(PyObject* const* given) : AttentionArguments(kFunction, false, false) {
    params.dout = call.required(given[kDout], "dout");
    params.query = call.required(given[kQuery], "query");
    params.key = call.required(given[kKey], "key");
    params.value = call.required(given[kValue], "value");
    params.out = call.required(given[kOut], "out");
    params.lse = call.required(given[kLse], "lse");
    params.bias = call.array(given[kBias], "bias");
    params.cum_seqlens_q = call.index_array(given[kCumSeqlensQ], "cum_seqlens_q");
    params.cum_seqlens_k = call.index_array(given[kCumSeqlensK], "cum_seqlens_k");
    params.softmax_aux = call.array(given[kSoftmaxAux], "softmax_aux");
    params.dlse = call.array(given[kDlse], "dlse");
    masks(given[kMaskInfo], given[kAttentionMask], given[kQSegmentIds], given[kKvSegmentIds]);
    options({given[kSoftmaxScale], given[kDropoutProb], given[kCausal], given[kCausalAlignment], given[kDropoutSeed], given[kSlidingWindow],
             given[kLogitsSoftCap], given[kPrecision], given[kLogitsDtype], given[kPlatform], given[kCfg]});
    params.deterministic = boolean(given[kDeterministic], where("deterministic"));
  }

  Operation create() const {
    attile_op* op = nullptr;
    check(attile_flash_attention_backward_create(&params, &op));
    return Operation(op);
  }
};

PyObject* flash_attention_backward(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    check_count("_core.flash_attention_backward", count, kArgumentCount);
    const Arguments arguments(given);
    return run(arguments.create(), arguments.call, nullptr);
  });
}

PyObject* explain_flash_attention_backward(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    check_count("_core.explain_flash_attention_backward", count, kArgumentCount);
    const Arguments arguments(given);
    return explain(arguments.create(), nullptr);
  });
}

PyMethodDef functions[] = {
    {"flash_attention_backward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&flash_attention_backward)), METH_FASTCALL,
     "The gradients as a tuple of those that exist; every argument by position, in the order of attile.flash_attention_backward."},
    {"explain_flash_attention_backward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&explain_flash_attention_backward)),
     METH_FASTCALL, "What flash_attention_backward would do with these arguments, as JSON."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace
}  // namespace backward_call

void register_backward(py::module_& m) { add_functions(m, backward_call::functions); }

}  // namespace attile::python
