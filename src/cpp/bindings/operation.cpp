// Running an operation (see operation.hpp).
#include "bindings/operation.hpp"

#include <algorithm>
#include <optional>

namespace attile::python {
namespace {

attile_status run_without_gil(attile_op* op, void* workspace, void* stream, bool synchronize, int32_t device_id) {
  PyThreadState* state = PyEval_SaveThread();
  attile_status status = attile_op_run(op, workspace, stream, nullptr);
  if (status == ATTILE_OK && synchronize) status = attile_cuda_synchronize(device_id, stream);
  PyEval_RestoreThread(state);
  return status;
}

// Computes on the CPU with the library's own scratch, or on CUDA: scratch from the array library, on its current stream, which
// orders it against the next use of that memory.
void compute(attile_op* op, const Call& call, void* stream, void* workspace) {
  const Borrowed& first = call.first();
  const bool on_cpu = first.tensor.device_type == 1;
  std::optional<Result> scratch;
  attile_tensor spec{};
  if (const size_t bytes = on_cpu || workspace ? 0 : attile_op_workspace_bytes(op)) {
    spec = bytes_beside(first, bytes);
    scratch.emplace(spec, first, call.function());
    workspace = spec.data;
  }
  check(run_without_gil(op, workspace, stream, !on_cpu && first.type->library.synchronizes, first.tensor.device_id));
}

}  // namespace

void mark_written(const Borrowed* array) {
  if (array && !array->type->library.written.is_none()) array->type->library.written(py::handle(array->object));
}

PyObject* run(Operation op, const Call& call, const Given& given) {
  const int32_t count = attile_op_num_outputs(op.get());
  attile_tensor specs[kMaxOutputs];
  const attile_tensor* tensors[kMaxOutputs];
  std::optional<Result> results[kMaxOutputs];
  void* stream = current_stream(call.first());
  for (int32_t i = 0; i < count; ++i) {
    tensors[i] = given.outputs[i] ? &given.outputs[i]->tensor : &specs[i];
    if (given.outputs[i]) continue;
    check(attile_op_output(op.get(), i, &specs[i]));
    results[i].emplace(specs[i], call.first(), call.function());
  }
  check(attile_op_bind(op.get(), tensors, count));
  compute(op.get(), call, stream, given.workspace);
  for (const Borrowed* out : given.outputs) mark_written(out);

  auto result = [&](int32_t i) { return results[i] ? results[i]->finish() : py::reinterpret_borrow<py::object>(given.outputs[i]->object); };
  if (std::min(count, given.returned) == 1) return result(0).release().ptr();
  py::tuple all(static_cast<size_t>(std::min(count, given.returned)));
  for (int32_t i = 0; i < std::min(count, given.returned); ++i) all[static_cast<size_t>(i)] = result(i);
  return all.release().ptr();
}

PyObject* launch(Operation op, const Call& call, const std::string& recipe) {
  py::list arrays, results;
  for (const Borrowed& b : call.arrays()) arrays.append(py::reinterpret_borrow<py::object>(b.object));
  const int32_t count = attile_op_num_outputs(op.get());
  for (int32_t i = 0; i < count; ++i) {
    attile_tensor spec;
    check(attile_op_output(op.get(), i, &spec));
    results.append(py::make_tuple(shape_of(spec), dtype_name(spec.dtype)));
  }
  const py::list made = call.first().type->library.launch(recipe, arrays, py::tuple(results));
  return count == 1 ? py::object(made[0]).release().ptr() : py::tuple(made).release().ptr();
}

PyObject* explain(Operation op, const Borrowed* out) {
  const attile_tensor* tensor = out ? &out->tensor : nullptr;
  if (out) check(attile_op_bind(op.get(), &tensor, 1));
  return py::str(attile_op_explain(op.get())).release().ptr();
}

}  // namespace attile::python
