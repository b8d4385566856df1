// Options that several public functions share, from Python objects to the fields of their parameter structs.
#pragma once

#include "bindings/errors.hpp"
#include "bindings/scalars.hpp"

namespace attile::python {

inline constexpr Choice kPlatforms[] = {{"auto", ATTILE_PLATFORM_AUTO}, {"cpu", ATTILE_PLATFORM_CPU}, {"cuda", ATTILE_PLATFORM_CUDA}};
inline constexpr Choice kAlignments[] = {{"top_left", ATTILE_TOP_LEFT}, {"bottom_right", ATTILE_BOTTOM_RIGHT}};

// `count` is what CPython handed to a METH_FASTCALL function; the public functions pass every argument by position.
void check_count(const char* function, Py_ssize_t count, Py_ssize_t expected);

// Whether the option is given, and its value; None leaves it to the library.
struct OptionalNumber {
  int32_t given = 0;
  double value = 0;
};
OptionalNumber optional_number(PyObject* value, Where where);

// A sliding window. An int w is (w, w); None and -1 are unlimited.
struct Window {
  int32_t given = 0;
  int64_t left = -1, right = -1;
};
Window window(PyObject* value, Where where);

// `cfg`, an instance of FlashAttentionConfig or None. The kernel's name is owned by the object that keeps_name holds.
attile_config flash_attention_config(PyObject* cfg, const char* function, py::object& keeps_name);
// The same of FlashMLAConfig, but for its strategy.
attile_config flash_mla_config(PyObject* cfg, const char* function, py::object& keeps_name);

}  // namespace attile::python
