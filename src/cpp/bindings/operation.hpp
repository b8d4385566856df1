// An operation of libattile from the binding's side: outputs from the caller's library or the caller's own, run without the
// GIL, results back to Python.
#pragma once

#include <memory>
#include <utility>

#include "bindings/arrays.hpp"

namespace attile::python {

struct DestroyOperation {
  void operator()(attile_op* op) const { attile_op_destroy(op); }
};
using Operation = std::unique_ptr<attile_op, DestroyOperation>;

// Memory of the caller's.
inline constexpr int32_t kMaxOutputs = 8;

struct Given {
  const Borrowed* outputs[kMaxOutputs] = {};  // null: a new array
  void* workspace = nullptr;                  // null: the library's own, on CUDA the array library's
  int32_t returned = kMaxOutputs;             // at most so many outputs are returned
};

// Binds given outputs and new arrays for the rest, computes, and returns the array, or a tuple of several.
PyObject* run(Operation op, const Call& call, const Given& given);
inline PyObject* run(Operation op, const Call& call, const Borrowed* out) { return run(std::move(op), call, Given{.outputs = {out}}); }

// Tells the array's library, where it wants to know. null: nothing.
void mark_written(const Borrowed* array);

// Hands a call on deferred arrays to their library, with the recipe to run it by, and returns its results.
PyObject* launch(Operation op, const Call& call, const std::string& recipe);

// What run() would do, as JSON.
PyObject* explain(Operation op, const Borrowed* out);

}  // namespace attile::python
