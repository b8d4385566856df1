// Scalars of a call (see scalars.hpp).
#include "bindings/scalars.hpp"

#include <limits>
#include <string>

#include "bindings/numpy.hpp"

namespace attile::python {
namespace {

// A NumPy scalar of one of these kinds ("f" float, "i" int, "u" unsigned, "b" bool, "V" those of ml_dtypes).
bool is_numpy_scalar(PyObject* value, const char* kinds) {
  if (!numpy::is_scalar(value)) return false;
  const std::string kind = py::str(py::handle(value).attr("dtype").attr("kind"));
  return std::string(kinds).find(kind) != std::string::npos;
}

bool is_python_int(PyObject* value) { return PyLong_Check(value) && !PyBool_Check(value); }

// The Python int of an integer argument.
py::object python_int(PyObject* value, Where where) {
  if (!is_python_int(value) && !is_numpy_scalar(value, "iu"))
    refuse(PyExc_TypeError, where, " must be an integer", "a Python or NumPy integer", type_name(value));
  PyObject* index = PyNumber_Index(value);
  if (!index) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(index);
}

}  // namespace

double number(PyObject* value, Where where) {
  if (PyFloat_Check(value)) return PyFloat_AS_DOUBLE(value);
  if (is_python_int(value) || is_numpy_scalar(value, "fiuV")) {
    const double x = PyFloat_AsDouble(value);
    if (x != -1 || !PyErr_Occurred()) return x;
    if (PyErr_ExceptionMatches(PyExc_OverflowError))
      refuse_from_pending(PyExc_ValueError, where, " must be a finite number", "a float", "a larger integer");
    PyErr_Clear();
  }
  refuse(PyExc_TypeError, where, " must be a number", "a Python or NumPy number", type_name(value));
}

int64_t integer(PyObject* value, Where where) {
  const py::object index = python_int(value, where);
  int overflow = 0;
  const long long x = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow) return overflow > 0 ? std::numeric_limits<int64_t>::max() : std::numeric_limits<int64_t>::min();
  return x;
}

uint64_t unsigned_integer(PyObject* value, Where where) {
  const py::object index = python_int(value, where);
  const unsigned long long x = PyLong_AsUnsignedLongLong(index.ptr());
  if (x == static_cast<unsigned long long>(-1) && PyErr_Occurred()) {
    PyErr_Clear();
    refuse(PyExc_ValueError, where, " is out of range", std::string("0 <= ") + where.argument + " < 2**64", py::repr(value));
  }
  return x;
}

bool boolean(PyObject* value, Where where) {
  if (value == Py_True) return true;
  if (value == Py_False) return false;
  if (is_numpy_scalar(value, "b")) return PyObject_IsTrue(value) != 0;
  refuse(PyExc_TypeError, where, " must be a bool", "True or False", type_name(value));
}

int32_t choice_or_none(PyObject* value, Where where, std::span<const Choice> choices) {
  if (!PyUnicode_Check(value)) return -1;
  for (const Choice& c : choices)
    if (PyUnicode_CompareWithASCIIString(value, c.text) == 0) return c.value;
  std::string expected = "one of ";
  for (const Choice& c : choices) expected += std::string(&c == choices.data() ? "'" : ", '") + c.text + "'";
  refuse(PyExc_ValueError, where, " is unknown", expected, py::repr(value));
}

int32_t choice(PyObject* value, Where where, std::span<const Choice> choices) {
  const int32_t found = choice_or_none(value, where, choices);
  if (found < 0) refuse(PyExc_TypeError, where, " must be a string", "str", type_name(value));
  return found;
}

}  // namespace attile::python
