// An operation of libattile from the binding's side: outputs from the caller's library or the caller's own, run without the
// GIL, results back to Python.
#pragma once

#include <memory>

#include "bindings/arrays.hpp"

namespace attile::python {

struct DestroyOperation {
  void operator()(attile_op* op) const { attile_op_destroy(op); }
};
using Operation = std::unique_ptr<attile_op, DestroyOperation>;

// Binds `out` (null: a new array) and new arrays for the rest, computes, and returns the array, or a tuple of several.
PyObject* run(Operation op, const Call& call, const Borrowed* out);

// Hands a call on deferred arrays to their library, with the recipe to run it by, and returns its results.
PyObject* launch(Operation op, const Call& call, const std::string& recipe);

// What run() would do, as JSON.
PyObject* explain(Operation op, const Borrowed* out);

}  // namespace attile::python
