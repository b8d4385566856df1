// A call apart from its arrays, as text: the function, its parameters, and which array is which. Where another runtime owns the arrays
// and decides when work is queued (XLA), it keeps the text in its program and hands it back with the buffers of each execution:
//
//   Python call -> create on arrays without data: everything is checked, the outputs are known
//               -> recipe_of(params, call) -> the runtime's program ... -> Recipe(text) -> create on its buffers -> bind, run
//
// A function takes part by a row of the table in recipe.cpp.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bindings/operation.hpp"

namespace attile::python {

struct RecipeFunction;

template <class Params>
const RecipeFunction& recipe_function();

std::string write_recipe(const RecipeFunction& function, const void* params, const Call& call);

template <class Params>
std::string recipe_of(const Params& params, const Call& call) {
  return write_recipe(recipe_function<Params>(), &params, call);
}

// Runs a call whose function has a row: `arguments` has call, params, out and create().
template <class Arguments>
PyObject* run(const Arguments& arguments) {
  if (arguments.call.first().deferred) return launch(arguments.create(), arguments.call, recipe_of(arguments.params, arguments.call));
  return run(arguments.create(), arguments.call, arguments.out);
}

class Recipe {
 public:
  // Null data: the buffers come with create().
  std::vector<attile_tensor> arrays;

  // Throws std::invalid_argument where the text is not one of this build.
  explicit Recipe(std::string_view text);

  // `arrays` hold their data.
  attile_status create(attile_op** op);

 private:
  struct Scalar {
    attile_tensor tensor;
    double value;
  };
  const RecipeFunction* function_;
  std::vector<std::byte> params_;
  std::vector<int32_t> fields_;  // of each tensor of the parameters: its array, kNone, or below that a scalar
  std::vector<Scalar> scalars_;
  std::string kernel_;
};

}  // namespace attile::python
