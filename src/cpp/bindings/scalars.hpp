// Scalars of a call: Python or NumPy numbers, booleans, and strings out of a list. An array or a traced value is a TypeError.
#pragma once

#include <cstdint>
#include <span>

#include "bindings/errors.hpp"

namespace attile::python {

double number(PyObject* value, Where where);
int64_t integer(PyObject* value, Where where);  // saturates
uint64_t unsigned_integer(PyObject* value, Where where);
bool boolean(PyObject* value, Where where);

struct Choice {
  const char* text;
  int32_t value;
};
// The value of a string; -1 when the object is no string.
int32_t choice_or_none(PyObject* value, Where where, std::span<const Choice> choices);
int32_t choice(PyObject* value, Where where, std::span<const Choice> choices);

}  // namespace attile::python
