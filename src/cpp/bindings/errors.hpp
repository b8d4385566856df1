// Python exceptions from C++: a raised error is set in the interpreter and travels as py::error_already_set to the entry that
// was called from Python. Texts follow one form, "function: argument must ...: expected X, got Y".
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "attile/attile.h"

namespace attile::python {

namespace py = pybind11;

[[noreturn]] inline void raise(PyObject* type, const std::string& text) {
  PyErr_SetString(type, text.c_str());
  throw py::error_already_set();
}

// An argument of a public function, for messages.
struct Where {
  const char* function;
  const char* argument;
};

// "function: argument rule: expected X, got Y"
[[noreturn]] void refuse(PyObject* type, Where where, const std::string& rule, const std::string& expected, const std::string& got);

// The same with the pending Python exception as its cause, whose first line stands at the end of the text.
[[noreturn]] void refuse_from_pending(PyObject* type, Where where, const std::string& rule, const std::string& expected,
                                      const std::string& got);

// The type of an object, as a reader would name it: "list", "numpy.ndarray", "torch.Tensor".
std::string type_name(PyObject* object);

// The last error of the C interface as the Python exception that belongs to its status.
[[noreturn]] void raise_status(attile_status status);
inline void check(attile_status status) {
  if (status != ATTILE_OK) raise_status(status);
}

// Runs the body of an entry that CPython calls; a C++ exception becomes the pending Python exception.
template <class Body>
PyObject* guarded(Body&& body) noexcept {
  try {
    return body();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

}  // namespace attile::python
