// Arrays of a call (see arrays.hpp).
#include "bindings/arrays.hpp"

#include <pybind11/stl.h>

#include <atomic>
#include <tuple>

#include "bindings/bindings.hpp"
#include "bindings/numpy.hpp"

namespace attile::python {
namespace {

// type -> capsule of ArrayType. Entries stay for good, so a pointer taken from one does too.
PyObject* known_types = nullptr;
std::atomic<const ArrayType*> numpy_array_type{nullptr};

std::vector<py::object> strings(const py::handle& names) {
  std::vector<py::object> list;
  for (const py::handle name : names) list.push_back(py::reinterpret_borrow<py::object>(name));
  return list;
}

// Asks arrays.py about a type that was not seen before; null when it is no array type.
const ArrayType* recognise(PyObject* object) {
  const py::handle type(reinterpret_cast<PyObject*>(Py_TYPE(object)));
  const py::object answer = py::module_::import("attile.arrays").attr("recognise")(type);
  if (answer.is_none()) return nullptr;
  const py::object library = answer[py::int_(0)];
  const std::string route = answer[py::int_(1)].cast<std::string>();
  auto found = std::make_unique<ArrayType>();
  Library& l = found->library;
  l.name = library.attr("name").cast<std::string>();
  l.is_mutable = library.attr("mutable").cast<bool>();
  l.legacy_writable = library.attr("legacy_writable").cast<bool>();
  l.check = library.attr("check");
  l.empty = library.attr("empty");
  l.adopt = library.attr("adopt");
  l.written = library.attr("written");
  l.describe = library.attr("describe");
  l.launch = library.attr("launch");
  l.stream = library.attr("stream");
  l.synchronizes = library.attr("synchronizes").cast<bool>();
  l.export_stream = library.attr("export_stream");
  l.flags = strings(library.attr("flags"));
  l.part_flags = strings(library.attr("part_flags"));
  if (const py::object watch = library.attr("watch")(); !watch.is_none()) {
    l.watched = watch[py::int_(0)];
    l.watched_attribute = watch[py::int_(1)];
    l.quiet_value = watch[py::int_(2)];
  }
  found->api = route == "exchange" ? dlpack::exchange_api(Py_TYPE(object)) : nullptr;
  found->route = route == "numpy" ? Route::numpy : route == "refused" ? Route::refused : found->api ? Route::exchange : Route::protocol;
  const py::capsule capsule(found.release());
  if (PyDict_SetItem(known_types, type.ptr(), capsule.ptr()) != 0) throw py::error_already_set();
  const ArrayType* kept = capsule.get_pointer<ArrayType>();
  if (numpy::is_exact_array(object)) numpy_array_type.store(kept, std::memory_order_release);
  return kept;
}

const ArrayType* array_type(PyObject* object) {
  if (numpy::is_exact_array(object))
    if (const ArrayType* type = numpy_array_type.load(std::memory_order_acquire)) return type;
  PyObject* capsule = PyDict_GetItemWithError(known_types, reinterpret_cast<PyObject*>(Py_TYPE(object)));
  if (capsule) return static_cast<const ArrayType*>(PyCapsule_GetPointer(capsule, nullptr));
  if (PyErr_Occurred()) throw py::error_already_set();
  return recognise(object);
}

bool is_true(PyObject* value) {
  if (!value) throw py::error_already_set();
  const bool raised = value == Py_True || (value != Py_False && PyObject_IsTrue(value) != 0);
  Py_DECREF(value);
  return raised;
}

// Whether one of the library's flags is raised: the array needs its library's own check.
bool flagged(PyObject* object, const Library& library) {
  for (const py::object& name : library.flags)
    if (is_true(PyObject_GetAttr(object, name.ptr()))) return true;
  return false;
}

// Whether every array needs it.
bool alarmed(const Library& library) {
  if (!library.watched) return false;
  const py::object value = library.watched.attr(library.watched_attribute);
  return PyObject_RichCompareBool(value.ptr(), library.quiet_value.ptr(), Py_NE) != 0;
}

// As flagged(), of an array that may be the part of a complex one.
bool part_flagged(PyObject* object, const Library& library, attile_dtype t) {
  if (t.code != 2 || t.bits < 16) return false;
  for (const py::object& name : library.part_flags)
    if (is_true(PyObject_CallMethodNoArgs(object, name.ptr()))) return true;
  return false;
}

// What the library reads instead of the array, or its error.
py::object checked(PyObject* object, const Library& library, Where where, bool in_place) {
  return library.check(py::handle(object), where.function, where.argument, in_place);
}

// The export failed: the library may know why, else its own words are the reason.
[[noreturn]] void refuse_export(PyObject* object, const Library& library, Where where, bool in_place) {
  // Not for us to explain: KeyboardInterrupt and the like.
  if (!PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError)) throw py::error_already_set();
  py::error_already_set cause;
  checked(object, library, where, in_place);
  cause.restore();
  refuse_from_pending(PyExc_ValueError, where, " cannot be taken without a copy", "an array that its library exports by DLPack",
                      type_name(object));
}

void read(Borrowed& b, PyObject* object, Where where, bool in_place) {
  const Library& library = b.type->library;
  switch (b.type->route) {
    case Route::numpy:
      b.tensor = numpy::tensor_of(object, where);
      b.read_only = !numpy::writeable(object);
      return;
    case Route::exchange: {
      const dlpack::ExchangeApi& api = *b.type->api;
      if (api.tensor_from_object) {
        dlpack::Tensor tensor;
        if (api.tensor_from_object(object, &tensor) != 0) refuse_export(object, library, where, in_place);
        b.tensor = tensor_of(tensor, where);
        return;
      }
      dlpack::ManagedVersioned* managed = nullptr;
      if (api.managed_from_object(object, &managed) != 0) refuse_export(object, library, where, in_place);
      b.exported = Exported(managed);
      break;
    }
    case Route::protocol:
      try {
        b.exported = export_by_protocol(object, library.export_stream.ptr());
      } catch (py::error_already_set& error) {
        error.restore();
        refuse_export(object, library, where, in_place);
      }
      break;
    case Route::refused:
      refuse(PyExc_TypeError, where, " is of a type that attile does not take", "a plain array", type_name(object));
  }
  b.tensor = tensor_of(b.exported.tensor(), where);
  b.read_only = b.exported.versioned() ? b.exported.read_only() : !library.legacy_writable;
}

// Fills in what the library says of an array that it will hand to the call later; false when it is to be read now, as indices on the
// host are, whose values are checked.
bool describe(Borrowed& b, PyObject* object, Where where, bool index) {
  const Library& library = b.type->library;
  const py::object description = library.describe(py::handle(object), where.function, where.argument);
  if (description.is_none()) return false;
  auto [shape, code, bits, device_type, device_id] =
      description.cast<std::tuple<std::vector<int64_t>, uint8_t, uint8_t, int32_t, int32_t>>();
  if (index && device_type == 1) return false;
  const auto rank = static_cast<int32_t>(shape.size());
  b.tensor = tensor_of({&b, {device_type, device_id}, rank, {code, bits, 1}, shape.data(), nullptr, 0}, where);  // dense
  b.tensor.data = nullptr;
  return b.deferred = true;
}

}  // namespace

Borrowed& Call::borrow(PyObject* object, const char* argument, bool index) {
  const ArrayType* type = array_type(object);
  if (!type)
    refuse(PyExc_TypeError, where(argument), " must be an array", "an array of NumPy, torch, JAX, CuPy or another library with __dlpack__",
           type_name(object));
  const Library& library = type->library;
  if (count_ > 0 && type != arrays_[0].type) {
    const std::string& expected = arrays_[0].type->library.name;
    if (library.name != expected && !(index && library.name == "numpy"))
      refuse(PyExc_ValueError, where(argument), " must be of the library of the first argument",
             expected + (index && expected != "numpy" ? " or numpy" : ""), library.name);
  }
  if (count_ == 0) alarmed_ = alarmed(library);
  Borrowed& b = arrays_[count_++];
  b.type = type;
  b.object = object;
  if (type->route == Route::refused || (alarmed_ && library.watched) || flagged(object, library)) {
    b.owner = checked(object, library, where(argument), in_place_);
    object = b.owner.ptr();
  }
  if (!deferrable_ || library.describe.is_none() || !describe(b, object, where(argument), index))
    read(b, object, where(argument), in_place_);
  if (!b.deferred && !b.owner && part_flagged(object, library, b.tensor.dtype)) {
    b.owner = checked(object, library, where(argument), in_place_);
    read(b, b.owner.ptr(), where(argument), in_place_);
  }
  return b;
}

const attile_tensor* Call::array(PyObject* object, const char* argument) {
  return object == Py_None ? nullptr : &borrow(object, argument, false).tensor;
}

const attile_tensor* Call::index_array(PyObject* object, const char* argument) {
  if (object == Py_None) return nullptr;
  Borrowed& b = borrow(object, argument, true);
  // JAX may number several CPU devices; memory of NumPy is at home on each.
  const attile_tensor& first = arrays_[0].tensor;
  if (b.type->route == Route::numpy && first.device_type == 1) b.tensor.device_id = first.device_id;
  return &b.tensor;
}

const attile_tensor* Call::required(PyObject* object, const char* argument) { return &borrow(object, argument, false).tensor; }

const Borrowed* Call::output(PyObject* object, const char* argument) {
  if (object == Py_None) return nullptr;
  const Borrowed& b = borrow(object, argument, false);
  const Library& library = b.type->library;
  if (!library.is_mutable)
    refuse(PyExc_ValueError, where(argument), " cannot be written", "None, for arrays of " + library.name + " are immutable",
           type_name(object));
  if (b.read_only) refuse(PyExc_ValueError, where(argument), " must be writable", "a writable array", "one that is read-only");
  return &b;
}

// ---- results ---------------------------------------------------------------------------------------------------------------

const char* dtype_name(attile_dtype t) {
  if (t.code == 4) return "bfloat16";
  if (t.bits == 8) return "uint8";
  return t.bits == 64 ? "float64" : t.bits == 32 ? "float32" : "float16";
}

py::tuple shape_of(const attile_tensor& t) {
  py::tuple shape(static_cast<size_t>(t.rank));
  for (int32_t d = 0; d < t.rank; ++d) shape[static_cast<size_t>(d)] = t.shape[d];
  return shape;
}

attile_tensor bytes_beside(const Borrowed& array, size_t count) {
  attile_tensor spec{};
  spec.dtype = {1, 8, 1};
  spec.device_type = array.tensor.device_type;
  spec.device_id = array.tensor.device_id;
  spec.rank = 1;
  spec.shape[0] = static_cast<int64_t>(count);
  spec.strides[0] = 1;
  return spec;
}

namespace {

// By the exchange table: allocated and wrapped by the library, without a Python call.
py::object exchange_allocate(const dlpack::ExchangeApi& api, attile_tensor& spec) {
  dlpack::Tensor prototype = dlpack::describe(spec);
  prototype.strides = nullptr;  // C-contiguous
  dlpack::ManagedVersioned* managed = nullptr;
  auto set_error = [](void*, const char*, const char* message) { PyErr_SetString(PyExc_MemoryError, message); };
  if (api.allocate(&prototype, &managed, nullptr, set_error) != 0) {
    if (!PyErr_Occurred()) PyErr_NoMemory();
    throw py::error_already_set();
  }
  const dlpack::Tensor& tensor = managed->tensor;
  spec.data = tensor.data ? static_cast<char*>(tensor.data) + tensor.byte_offset : nullptr;
  void* object = nullptr;
  if (api.managed_to_object(managed, &object) != 0) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
}

// The library could not allocate: MemoryError with its words as the cause.
[[noreturn]] void refuse_allocation(const attile_tensor& spec, const char* function) {
  if (!PyErr_ExceptionMatches(PyExc_Exception)) throw py::error_already_set();
  if (!PyErr_ExceptionMatches(PyExc_MemoryError)) {
    py::error_already_set error;  // torch and XLA have no type of their own for it that is a MemoryError
    const std::string text = py::str(error.value());
    if (text.find("out of memory") == std::string::npos && text.find("RESOURCE_EXHAUSTED") == std::string::npos) throw error;
    error.restore();
  }
  int64_t bytes = spec.dtype.bits / 8;
  for (int32_t d = 0; d < spec.rank; ++d) bytes *= spec.shape[d];
  refuse_from_pending(PyExc_MemoryError, {function, ""}, "memory on cuda:" + std::to_string(spec.device_id) + " ran out",
                      std::to_string(bytes) + " bytes", "an error of the library");
}

}  // namespace

void* current_stream(const Borrowed& array) {
  const attile_tensor& t = array.tensor;
  if (t.device_type == 1) return nullptr;
  void* stream = nullptr;
  if (const dlpack::ExchangeApi* api = array.type->api; api && api->current_stream) {
    if (api->current_stream(t.device_type, t.device_id, &stream) != 0) throw py::error_already_set();
    return stream;
  }
  const py::object handle = array.type->library.stream(t.device_id);
  stream = PyLong_AsVoidPtr(handle.ptr());
  if (PyErr_Occurred()) throw py::error_already_set();
  return stream;
}

Result::Result(attile_tensor& spec, const Borrowed& like, const char* function) {
  try {
    allocate(spec, like, function);
  } catch (py::error_already_set& error) {
    if (spec.device_type == 1) throw;
    error.restore();
    refuse_allocation(spec, function);
  }
}

void Result::allocate(attile_tensor& spec, const Borrowed& like, const char* function) {
  const ArrayType* type = like.type;
  if (type->route == Route::numpy) {
    object_ = numpy::empty(spec, like.object);
    return;
  }
  if (type->route == Route::exchange) {
    object_ = exchange_allocate(*type->api, spec);
    return;
  }
  like_ = py::reinterpret_borrow<py::object>(like.object);
  object_ = type->library.empty(shape_of(spec), dtype_name(spec.dtype), like_);
  if (object_.is_none()) {
    object_ = make_buffer(spec);
    adopt_ = type->library.adopt;
    return;
  }
  Call call(function, true);
  spec.data = call.required(object_.ptr(), "result")->data;  // JAX's may be written too: nobody else has it yet
}

py::object Result::finish() { return adopt_ ? py::object(adopt_(object_, like_)) : std::move(object_); }

void register_arrays(py::module_& m) {
  numpy::initialise();
  known_types = PyDict_New();
  if (!known_types) throw py::error_already_set();
  register_buffer(m);
}

}  // namespace attile::python
