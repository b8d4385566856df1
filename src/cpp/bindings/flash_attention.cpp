// flash_attention from Python: its arguments, in the order in which python/attile/flash.py passes them, to the parameters of
// the C interface. Values of arrays and scalars are judged there; here, whether an argument is of the right kind.
#include "bindings/attention_arguments.hpp"
#include "bindings/bindings.hpp"
#include "bindings/numpy.hpp"
#include "bindings/recipe.hpp"

namespace attile::python {
namespace flash_attention_call {
namespace {

constexpr const char* kFunction = "flash_attention";

// clang-format off
enum Argument : Py_ssize_t {
  kQuery, kKey, kValue, kBias, kCumSeqlensQ, kCumSeqlensK, kSoftmaxAux, kMaskInfo, kAttentionMask, kSoftmaxScale, kDropoutProb, kCausal,
  kCausalAlignment, kDropoutSeed, kSlidingWindow, kLogitsSoftCap, kNormalizeOutput, kPrecision, kLogitsDtype, kQSegmentIds, kKvSegmentIds,
  kQScale, kKScale, kVScale, kReturnLse, kOut, kPlatform, kCfg, kArgumentCount
};
// clang-format on

struct Arguments : AttentionArguments<attile_flash_attention_params> {
  const Borrowed* out = nullptr;
  float scales[3];
  attile_tensor scale_tensors[3];

  explicit Arguments(PyObject* const* given) : AttentionArguments(kFunction, given[kOut] != Py_None, given[kDropoutSeed] == Py_None) {
    arrays(given);
    options({given[kSoftmaxScale], given[kDropoutProb], given[kCausal], given[kCausalAlignment], given[kDropoutSeed],
             given[kSlidingWindow], given[kLogitsSoftCap], given[kPrecision], given[kLogitsDtype], given[kPlatform], given[kCfg]});
    params.normalize_output = boolean(given[kNormalizeOutput], where("normalize_output"));
    params.return_lse = boolean(given[kReturnLse], where("return_lse"));
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
    masks(given[kMaskInfo], given[kAttentionMask], given[kQSegmentIds], given[kKvSegmentIds]);
    params.q_scale = scale(0, given[kQScale], "q_scale");
    params.k_scale = scale(1, given[kKScale], "k_scale");
    params.v_scale = scale(2, given[kVScale], "v_scale");
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
}  // namespace flash_attention_call

void register_flash_attention(py::module_& m) { add_functions(m, flash_attention_call::functions); }

}  // namespace attile::python
