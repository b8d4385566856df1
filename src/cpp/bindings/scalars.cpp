// Scalars of a call (see scalars.hpp).
#include "bindings/scalars.hpp"

#include <limits>
#include <string>

#include "bindings/numpy.hpp"

namespace attile::python {
namespace {

std::string prefix(const char* function, const char* argument) { return std::string(function) + ": " + argument; }

[[noreturn]] void wrong_type(PyObject* value, const char* function, const char* argument, const char* rule, const char* expected) {
  raise(PyExc_TypeError, prefix(function, argument) + " must be " + rule + ": expected " + expected + ", got " + type_name(value));
}

std::string repr(PyObject* value) { return py::repr(value); }

// A NumPy scalar of one of these kinds ("f" float, "i" int, "u" unsigned, "V" those of ml_dtypes).
bool is_numpy_number(PyObject* value, const char* kinds) {
  if (!numpy::is_scalar(value)) return false;
  const std::string kind = py::str(py::handle(value).attr("dtype").attr("kind"));
  return std::string(kinds).find(kind) != std::string::npos;
}

// The Python int of an integer argument.
py::object python_int(PyObject* value, const char* function, const char* argument) {
  if ((PyLong_Check(value) && !PyBool_Check(value)) || is_numpy_number(value, "iu")) {
    PyObject* index = PyNumber_Index(value);
    if (!index) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(index);
  }
  wrong_type(value, function, argument, "an integer", "a Python or NumPy integer");
}

}  // namespace

double number(PyObject* value, const char* function, const char* argument) {
  if (PyFloat_Check(value)) return PyFloat_AS_DOUBLE(value);
  if ((PyLong_Check(value) && !PyBool_Check(value)) || is_numpy_number(value, "fiuV")) {
    const double x = PyFloat_AsDouble(value);
    if (x != -1 || !PyErr_Occurred()) return x;
    if (PyErr_ExceptionMatches(PyExc_OverflowError))
      raise_from_pending(PyExc_ValueError, prefix(function, argument) + " must be a finite number: expected a float, got a larger integer");
    PyErr_Clear();
  }
  wrong_type(value, function, argument, "a number", "a Python or NumPy number");
}

int64_t integer(PyObject* value, const char* function, const char* argument) {
  const py::object index = python_int(value, function, argument);
  int overflow = 0;
  const long long x = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow) return overflow > 0 ? std::numeric_limits<int64_t>::max() : std::numeric_limits<int64_t>::min();
  return x;
}

uint64_t unsigned_integer(PyObject* value, const char* function, const char* argument) {
  const py::object index = python_int(value, function, argument);
  const unsigned long long x = PyLong_AsUnsignedLongLong(index.ptr());
  if (x == static_cast<unsigned long long>(-1) && PyErr_Occurred()) {
    PyErr_Clear();
    raise(PyExc_ValueError, prefix(function, argument) + " is out of range: expected 0 <= " + argument + " < 2**64, got " + repr(value));
  }
  return x;
}

bool boolean(PyObject* value, const char* function, const char* argument) {
  if (value == Py_True) return true;
  if (value == Py_False) return false;
  if (is_numpy_number(value, "b")) return PyObject_IsTrue(value) != 0;
  wrong_type(value, function, argument, "a bool", "True or False");
}

int32_t choice_or_none(PyObject* value, const char* function, const char* argument, std::span<const Choice> choices) {
  if (!PyUnicode_Check(value)) return -1;
  for (const Choice& c : choices)
    if (PyUnicode_CompareWithASCIIString(value, c.text) == 0) return c.value;
  std::string expected;
  for (const Choice& c : choices) expected += std::string(expected.empty() ? "'" : ", '") + c.text + "'";
  raise(PyExc_ValueError, prefix(function, argument) + " is unknown: expected one of " + expected + ", got " + repr(value));
}

int32_t choice(PyObject* value, const char* function, const char* argument, std::span<const Choice> choices) {
  const int32_t found = choice_or_none(value, function, argument, choices);
  if (found < 0) wrong_type(value, function, argument, "a string", "str");
  return found;
}

}  // namespace attile::python
