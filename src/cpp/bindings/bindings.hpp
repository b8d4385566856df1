// What module.cpp registers: one function for each room of the binding.
#pragma once

#include "bindings/errors.hpp"

namespace attile::python {

void register_arrays(py::module_& m);
void register_backward(py::module_& m);
void register_flash_attention(py::module_& m);
void register_kvcache(py::module_& m);
void register_mla_attention(py::module_& m);
void register_mla_backward(py::module_& m);
void register_merge_states(py::module_& m);
void register_mla_decode(py::module_& m);
void register_config(py::module_& m);
void register_jax_ffi(py::module_& m);

// Adds functions that CPython calls directly: at these rates pybind11's own calls (0.4 us) would be a fifth of the whole.
inline void add_functions(py::module_& m, PyMethodDef* definitions) {
  if (PyModule_AddFunctions(m.ptr(), definitions) != 0) throw py::error_already_set();
}

}  // namespace attile::python
