// NumPy arrays through their C struct, whose head has not changed from NumPy 1.7 to 2.5: no NumPy header is needed, and reading
// an array costs a few loads. Dtypes of ml_dtypes (bfloat16, float8_e4m3fn) are known by the name of their scalar type, for
// their numbers are given at run time.
#pragma once

#include <string>

#include "bindings/errors.hpp"

namespace attile::python::numpy {

// Finds NumPy's function table; called once when the module is made.
void initialise();

// Whether the object is an ndarray of exactly this class; of the class or one derived.
bool is_exact_array(PyObject* object);
// Whether the object is a NumPy scalar (numpy.generic).
bool is_scalar(PyObject* object);

// The view of an array. Raises TypeError for a dtype that has no DLPack name or a foreign byte order, ValueError for strides
// that are no multiple of the item size.
attile_tensor tensor_of(PyObject* array, Where where);
bool writeable(PyObject* array);

// numpy.empty(shape, dtype); sets spec.data. A dtype of ml_dtypes is taken from `like`, an array that has it.
py::object empty(attile_tensor& spec, PyObject* like);

}  // namespace attile::python::numpy
