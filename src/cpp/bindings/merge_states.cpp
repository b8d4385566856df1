// merge_states from Python.
#include <string>

#include "bindings/bindings.hpp"
#include "bindings/recipe.hpp"

namespace attile::python {
namespace merge_states_call {
namespace {

constexpr const char* kFunction = "merge_states";
constexpr Py_ssize_t kArgumentCount = 4;

struct Arguments {
  Call call{kFunction, false, true};
  attile_merge_states_params params{};
  const Borrowed* out = nullptr;

  Arguments(PyObject* const* given, Py_ssize_t count) {
    if (count != kArgumentCount)
      raise(PyExc_TypeError,
            "_core.merge_states: expected " + std::to_string(kArgumentCount) + " positional arguments, got " + std::to_string(count));
    params.struct_size = sizeof params;
    params.out_a = call.required(given[0], "out_a");
    params.lse_a = call.required(given[1], "lse_a");
    params.out_b = call.required(given[2], "out_b");
    params.lse_b = call.required(given[3], "lse_b");
  }

  Operation create() const {
    attile_op* op = nullptr;
    check(attile_merge_states_create(&params, &op));
    return Operation(op);
  }
};

PyObject* merge_states(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    const Arguments arguments(given, count);
    return run(arguments);
  });
}

PyObject* explain_merge_states(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return guarded([&] {
    const Arguments arguments(given, count);
    return explain(arguments.create(), nullptr);
  });
}

PyMethodDef functions[] = {{"merge_states", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&merge_states)), METH_FASTCALL,
                            "merge_states(out_a, lse_a, out_b, lse_b), by position."},
                           {"explain_merge_states", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&explain_merge_states)),
                            METH_FASTCALL, "What merge_states would do with these arguments, as JSON."},
                           {nullptr, nullptr, 0, nullptr}};

}  // namespace
}  // namespace merge_states_call

void register_merge_states(py::module_& m) { add_functions(m, merge_states_call::functions); }

}  // namespace attile::python
