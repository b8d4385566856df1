// Running an operation (see operation.hpp).
#include "bindings/operation.hpp"

#include <optional>

namespace attile::python {
namespace {

constexpr int32_t kMaxOutputs = 2;

attile_status run_without_gil(attile_op* op, void* workspace, void* stream, bool synchronize, int32_t device_id) {
  PyThreadState* state = PyEval_SaveThread();
  attile_status status = attile_op_run(op, workspace, stream, nullptr);
  if (status == ATTILE_OK && synchronize) status = attile_cuda_synchronize(device_id, stream);
  PyEval_RestoreThread(state);
  return status;
}

// Computes on the CPU with the library's own scratch, or on CUDA: scratch from the array library, on its current stream, which
// orders it against the next use of that memory.
void compute(attile_op* op, const Call& call, void* stream) {
  const Borrowed& first = call.first();
  const bool on_cpu = first.tensor.device_type == 1;
  std::optional<Result> scratch;
  attile_tensor spec{};
  if (const size_t bytes = on_cpu ? 0 : attile_op_workspace_bytes(op)) {
    spec.dtype = {1, 8, 1};
    spec.device_type = first.tensor.device_type;
    spec.device_id = first.tensor.device_id;
    spec.rank = 1;
    spec.shape[0] = static_cast<int64_t>(bytes);
    spec.strides[0] = 1;
    scratch.emplace(spec, first, call.function());
  }
  check(run_without_gil(op, spec.data, stream, !on_cpu && first.type->library.synchronizes, first.tensor.device_id));
}

}  // namespace

PyObject* run(Operation op, const Call& call, const Borrowed* out) {
  const int32_t count = attile_op_num_outputs(op.get());
  attile_tensor specs[kMaxOutputs];
  const attile_tensor* tensors[kMaxOutputs];
  std::optional<Result> results[kMaxOutputs];
  void* stream = current_stream(call.first());
  for (int32_t i = 0; i < count; ++i) {
    const bool given = i == 0 && out;
    tensors[i] = given ? &out->tensor : &specs[i];
    if (given) continue;
    check(attile_op_output(op.get(), i, &specs[i]));
    results[i].emplace(specs[i], call.first(), call.function());
  }
  check(attile_op_bind(op.get(), tensors, count));
  compute(op.get(), call, stream);
  if (out && !out->type->library.written.is_none()) out->type->library.written(py::handle(out->object));

  auto result = [&](int32_t i) { return results[i] ? results[i]->finish() : py::reinterpret_borrow<py::object>(out->object); };
  if (count == 1) return result(0).release().ptr();
  return py::make_tuple(result(0), result(1)).release().ptr();
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
