// What the library is: configuration report and number of threads.
#include "bindings/bindings.hpp"

namespace attile::python {

void register_config(py::module_& m) {
  m.def("show_config", [] { return py::str(attile_show_config()); }, "Version, CPU, kernels and threads of libattile, as JSON.");
  m.def(
      "set_num_threads", [](int32_t n) { check(attile_set_num_threads(n)); }, py::arg("n"), py::pos_only(),
      "Sets the number of threads; 0 is the default.");
  m.def("get_num_threads", &attile_get_num_threads, "The number of threads that calls use.");
  m.attr("__version__") =
      std::to_string(ATTILE_VERSION_MAJOR) + "." + std::to_string(ATTILE_VERSION_MINOR) + "." + std::to_string(ATTILE_VERSION_PATCH);
  if (attile_abi_version() != ATTILE_ABI_VERSION)
    raise(PyExc_ImportError, "attile: libattile must be of the same build as _core: expected ABI version " +
                                 std::to_string(ATTILE_ABI_VERSION) + ", got " + std::to_string(attile_abi_version()));
}

}  // namespace attile::python
