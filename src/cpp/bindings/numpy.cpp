// NumPy arrays through their C struct (see numpy.hpp).
#include "bindings/numpy.hpp"

#include <cstring>
#include <iterator>

namespace attile::python::numpy {
namespace {

struct Descr {
  PyObject_HEAD PyTypeObject* scalar_type;
  char kind;
  char type;
  char byte_order;
  char flags;
  int type_num;
};

struct Array {
  PyObject_HEAD char* data;
  int rank;
  Py_ssize_t* shape;
  Py_ssize_t* strides;  // in bytes
  PyObject* base;
  Descr* descr;
  int flags;
};

constexpr int kWriteable = 0x0400;

// Places in NumPy's function table, the same in every release.
constexpr int kArrayType = 2, kDescrFromType = 45, kNewFromDescr = 94;

struct Api {
  PyTypeObject* array_type = nullptr;
  PyObject* generic_type = nullptr;
  PyObject* (*descr_from_type)(int) = nullptr;
  PyObject* (*new_from_descr)(PyTypeObject*, PyObject* descr, int rank, const Py_ssize_t* shape, const Py_ssize_t* strides, void* data,
                              int flags, PyObject* object) = nullptr;
};
Api api;

constexpr uint8_t kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6, kFloat8E4m3fn = 10;
constexpr uint8_t kLongBits = 8 * sizeof(long), kLongDoubleBits = 8 * sizeof(long double);
// NumPy's type numbers in order: bool, byte .. ulonglong, float, double, longdouble and their complex kin; half is 23.
constexpr attile_dtype kNumbered[] = {{kBool, 8, 1},         {kInt, 8, 1},
                                      {kUint, 8, 1},         {kInt, 16, 1},
                                      {kUint, 16, 1},        {kInt, 32, 1},
                                      {kUint, 32, 1},        {kInt, kLongBits, 1},
                                      {kUint, kLongBits, 1}, {kInt, 64, 1},
                                      {kUint, 64, 1},        {kFloat, 32, 1},
                                      {kFloat, 64, 1},       {kFloat, kLongDoubleBits, 1},
                                      {kComplex, 64, 1},     {kComplex, 128, 1}};
constexpr int kFloatNum = 11, kDoubleNum = 12, kHalfNum = 23, kFirstUserNum = 256;

bool ends_with_name(const char* qualified, const char* name) {
  const char* dot = std::strrchr(qualified, '.');
  return std::strcmp(dot ? dot + 1 : qualified, name) == 0;
}

bool dtype_of(const Descr& descr, attile_dtype& dtype) {
  const int num = descr.type_num;
  if (num >= 0 && num < static_cast<int>(std::size(kNumbered)))
    dtype = kNumbered[num];
  else if (num == kHalfNum)
    dtype = {kFloat, 16, 1};
  else if (num >= kFirstUserNum && ends_with_name(descr.scalar_type->tp_name, "bfloat16"))
    dtype = {kBfloat, 16, 1};
  else if (num >= kFirstUserNum && ends_with_name(descr.scalar_type->tp_name, "float8_e4m3fn"))
    dtype = {kFloat8E4m3fn, 8, 1};
  else
    return false;
  return true;
}

}  // namespace

void initialise() {
  py::object table;
  try {
    table = py::module_::import("numpy._core._multiarray_umath").attr("_ARRAY_API");
  } catch (py::error_already_set& error) {  // NumPy 1
    if (!error.matches(PyExc_ImportError) && !error.matches(PyExc_AttributeError)) throw;
    table = py::module_::import("numpy.core._multiarray_umath").attr("_ARRAY_API");
  }
  void** functions = static_cast<void**>(PyCapsule_GetPointer(table.ptr(), nullptr));
  if (!functions) throw py::error_already_set();
  api.array_type = reinterpret_cast<PyTypeObject*>(functions[kArrayType]);
  api.descr_from_type = reinterpret_cast<decltype(api.descr_from_type)>(functions[kDescrFromType]);
  api.new_from_descr = reinterpret_cast<decltype(api.new_from_descr)>(functions[kNewFromDescr]);
  api.generic_type = py::object(py::module_::import("numpy").attr("generic")).release().ptr();
}

bool is_exact_array(PyObject* object) { return Py_TYPE(object) == api.array_type; }
bool is_scalar(PyObject* object) { return PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(api.generic_type)); }
bool writeable(PyObject* array) { return (reinterpret_cast<const Array*>(array)->flags & kWriteable) != 0; }

attile_tensor tensor_of(PyObject* object, Where where) {
  const Array& array = *reinterpret_cast<const Array*>(object);
  const py::handle descr(reinterpret_cast<PyObject*>(array.descr));
  attile_tensor t;
  if (!dtype_of(*array.descr, t.dtype)) refuse(PyExc_TypeError, where, " has an unsupported dtype", "a numeric dtype", py::str(descr));
  if (array.descr->byte_order != '=' && array.descr->byte_order != '|')
    refuse(PyExc_TypeError, where, ".dtype must be in native byte order", "dtype.newbyteorder('=')", py::repr(descr));
  if (array.rank > ATTILE_MAX_RANK)
    refuse(PyExc_ValueError, where, " has too many dimensions", "at most " + std::to_string(ATTILE_MAX_RANK), std::to_string(array.rank));
  t.data = array.data;
  t.device_type = 1;
  t.device_id = 0;
  t.rank = array.rank;
  const Py_ssize_t item = t.dtype.bits / 8;
  for (int32_t d = 0; d < t.rank; ++d) {
    t.shape[d] = array.shape[d];
    t.strides[d] = array.strides[d] / item;
    // The stride of a dimension that is not walked means nothing and may be anything.
    if (t.strides[d] * item != array.strides[d] && t.shape[d] > 1)
      refuse(PyExc_ValueError, where, ".strides[" + std::to_string(d) + "] must be a multiple of the item size",
             "a multiple of " + std::to_string(item) + " bytes", std::to_string(array.strides[d]));
  }
  return t;
}

py::object empty(attile_tensor& spec, PyObject* like) {
  PyObject* descr = nullptr;
  if (spec.dtype.code == kFloat) {
    descr = api.descr_from_type(spec.dtype.bits == 64 ? kDoubleNum : spec.dtype.bits == 32 ? kFloatNum : kHalfNum);
    if (!descr) throw py::error_already_set();
  } else {
    descr = reinterpret_cast<PyObject*>(reinterpret_cast<const Array*>(like)->descr);
    Py_INCREF(descr);
  }
  Py_ssize_t shape[ATTILE_MAX_RANK];
  for (int32_t d = 0; d < spec.rank; ++d) shape[d] = spec.shape[d];
  PyObject* array = api.new_from_descr(api.array_type, descr, spec.rank, shape, nullptr, nullptr, 0, nullptr);  // steals descr
  if (!array) throw py::error_already_set();
  spec.data = reinterpret_cast<const Array*>(array)->data;
  return py::reinterpret_steal<py::object>(array);
}

}  // namespace attile::python::numpy
