// Python exceptions from C++ (see errors.hpp).
#include "bindings/errors.hpp"

namespace attile::python {

namespace {

std::string text_of(Where where, const std::string& rule, const std::string& expected, const std::string& got) {
  return std::string(where.function) + ": " + where.argument + rule + ": expected " + expected + ", got " + got;
}

}  // namespace

void refuse(PyObject* type, Where where, const std::string& rule, const std::string& expected, const std::string& got) {
  raise(type, text_of(where, rule, expected, got));
}

void refuse_from_pending(PyObject* type, Where where, const std::string& rule, const std::string& expected, const std::string& got) {
  py::error_already_set cause;  // takes the pending exception
  std::string reason = py::str(cause.value());
  if (const size_t end = reason.find('\n'); end != std::string::npos) reason.resize(end);
  py::raise_from(cause, type, (text_of(where, rule, expected, got) + (reason.empty() ? "" : ": " + reason)).c_str());
  throw py::error_already_set();
}

std::string type_name(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  const py::handle handle(reinterpret_cast<PyObject*>(type));
  const std::string name = py::str(handle.attr("__qualname__"));
  const std::string module = py::str(py::getattr(handle, "__module__", py::str("builtins")));
  return module == "builtins" ? name : module + "." + name;
}

void raise_status(attile_status status) {
  PyObject* type = status == ATTILE_VALUE_ERROR       ? PyExc_ValueError
                   : status == ATTILE_TYPE_ERROR      ? PyExc_TypeError
                   : status == ATTILE_NOT_IMPLEMENTED ? PyExc_NotImplementedError
                   : status == ATTILE_OUT_OF_MEMORY   ? PyExc_MemoryError
                                                      : PyExc_RuntimeError;
  raise(type, attile_last_error());
}

}  // namespace attile::python
