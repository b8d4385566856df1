// Arrays of a call: which library they belong to, their view without a copy, and results from that library's own allocator.
//
// What is special to a library is a class in python/attile/arrays.py. It is asked once for each array type; the answer is kept
// here, so that a call costs one dictionary look-up an array (none for numpy.ndarray). The view is read by one of three routes:
// NumPy's C struct (about 40 ns), the C exchange table of the type (75 ns), or __dlpack__ (2.5 us).
#pragma once

#include <array>
#include <span>
#include <string>
#include <vector>

#include "bindings/dlpack.hpp"

namespace attile::python {

// A class of arrays.py, read once.
struct Library {
  std::string name;
  bool is_mutable = true;
  bool legacy_writable = false;
  bool synchronizes = false;                        // CUDA work is to be waited for
  py::object check, empty, adopt, written, stream;  // its methods; written may be None
  py::object describe, launch;                      // may be None: no array of it is deferred
  py::object export_stream;                         // for __dlpack__(stream=); None: not passed
  std::vector<py::object> flags;                    // attributes that are true when check() must look at an array
  std::vector<py::object> part_flags;               // methods likewise, of floating-point arrays that may be parts of complex ones
  // check() looks at every array while this attribute of this object (null: none) is not the quiet value.
  py::object watched, watched_attribute, quiet_value;
};

enum class Route : uint8_t { numpy, exchange, protocol, refused };

struct ArrayType {
  Library library;
  Route route;
  const dlpack::ExchangeApi* api;  // exchange
};

// An array that is read or written in place; valid while it lives.
struct Borrowed {
  attile_tensor tensor;
  const ArrayType* type = nullptr;
  PyObject* object = nullptr;  // as it was given
  py::object owner;            // what keeps the memory alive, where that is not the caller
  Exported exported;
  bool read_only = false;
  bool deferred = false;  // no data: the library may still be computing it, and will run the call itself (Library::launch)
};

// The arrays of one call of one public function.
class Call {
 public:
  // deferrable: the call may be run by the arrays' library (see recipe.hpp).
  Call(const char* function, bool in_place, bool deferrable = false)
      : function_(function), in_place_(in_place), deferrable_(deferrable && !in_place) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // The view of an argument; null for None. All but index arrays of NumPy must be of the library of the first.
  const attile_tensor* array(PyObject* object, const char* argument);
  const attile_tensor* index_array(PyObject* object, const char* argument);
  const attile_tensor* required(PyObject* object, const char* argument);
  // An array that will be written; null for None.
  const Borrowed* output(PyObject* object, const char* argument);

  const char* function() const { return function_; }
  const Borrowed& first() const { return arrays_[0]; }
  std::span<const Borrowed> arrays() const { return {arrays_.data(), count_}; }

 private:
  Borrowed& borrow(PyObject* object, const char* argument, bool index);
  Where where(const char* argument) const { return {function_, argument}; }

  static constexpr size_t kMaxArrays = 16;
  const char* function_;
  bool in_place_, deferrable_;
  bool alarmed_ = false;  // Library::watched has not its quiet value
  size_t count_ = 0;
  std::array<Borrowed, kMaxArrays> arrays_;
};

const char* dtype_name(attile_dtype t);  // of a result
py::tuple shape_of(const attile_tensor& t);
attile_tensor bytes_beside(const Borrowed& array, size_t count);  // to be allocated on its device

// The stream of the array's library that is current for the array's device; null on the CPU.
void* current_stream(const Borrowed& array);

// A new array of the library of `like`: its memory is in spec.data at once, the object is ready after finish().
class Result {
 public:
  Result(attile_tensor& spec, const Borrowed& like, const char* function);
  py::object finish();

 private:
  void allocate(attile_tensor& spec, const Borrowed& like, const char* function);

  py::object object_, adopt_, like_;  // adopt_: object_ is a Buffer that this method turns into an array
};

}  // namespace attile::python
