// Running an operation (see operation.hpp).
#include "bindings/operation.hpp"

#include <optional>

namespace attile::python {
namespace {

constexpr int32_t kMaxOutputs = 2;

attile_status run_without_gil(attile_op* op) {
  PyThreadState* state = PyEval_SaveThread();
  const attile_status status = attile_op_run(op, nullptr, nullptr, nullptr);
  PyEval_RestoreThread(state);
  return status;
}

}  // namespace

PyObject* run(Operation op, const Call& call, const Borrowed* out) {
  const int32_t count = attile_op_num_outputs(op.get());
  attile_tensor specs[kMaxOutputs];
  const attile_tensor* tensors[kMaxOutputs];
  std::optional<Result> results[kMaxOutputs];
  for (int32_t i = 0; i < count; ++i) {
    const bool given = i == 0 && out;
    tensors[i] = given ? &out->tensor : &specs[i];
    if (given) continue;
    check(attile_op_output(op.get(), i, &specs[i]));
    results[i].emplace(specs[i], call.first(), call.function());
  }
  check(attile_op_bind(op.get(), tensors, count));
  check(run_without_gil(op.get()));
  if (out && !out->type->library.written.is_none()) out->type->library.written(py::handle(out->object));

  auto result = [&](int32_t i) { return results[i] ? results[i]->finish() : py::reinterpret_borrow<py::object>(out->object); };
  if (count == 1) return result(0).release().ptr();
  return py::make_tuple(result(0), result(1)).release().ptr();
}

PyObject* explain(Operation op, const Borrowed* out) {
  const attile_tensor* tensor = out ? &out->tensor : nullptr;
  if (out) check(attile_op_bind(op.get(), &tensor, 1));
  return py::str(attile_op_explain(op.get())).release().ptr();
}

}  // namespace attile::python
