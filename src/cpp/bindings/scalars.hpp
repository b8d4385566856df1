// Scalars of a call: Python or NumPy numbers, booleans, and strings out of a list. An array or a traced value is a TypeError.
#pragma once

#include <cstdint>
#include <span>

#include "bindings/errors.hpp"

namespace attile::python {

double number(PyObject* value, const char* function, const char* argument);
int64_t integer(PyObject* value, const char* function, const char* argument);  // saturates
uint64_t unsigned_integer(PyObject* value, const char* function, const char* argument);
bool boolean(PyObject* value, const char* function, const char* argument);

struct Choice {
  const char* text;
  int32_t value;
};
// The value of a string; -1 when the object is no string.
int32_t choice_or_none(PyObject* value, const char* function, const char* argument, std::span<const Choice> choices);
int32_t choice(PyObject* value, const char* function, const char* argument, std::span<const Choice> choices);

}  // namespace attile::python
