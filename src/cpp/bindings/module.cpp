// attile._core: the Python module over libattile.
#include "bindings/bindings.hpp"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  m.doc() = "Python arrays to libattile and back; the public functions are in attile.";
  attile::python::register_config(m);
  attile::python::register_arrays(m);
  attile::python::register_flash_attention(m);
  attile::python::register_backward(m);
  attile::python::register_kvcache(m);
  attile::python::register_mla_attention(m);
  attile::python::register_mla_backward(m);
  attile::python::register_merge_states(m);
  attile::python::register_mla_decode(m);
  attile::python::register_jax_ffi(m);
}
