#include "bindings/options.hpp"

#include <string>

namespace attile::python {

void check_count(const char* function, Py_ssize_t count, Py_ssize_t expected) {
  if (count != expected)
    raise(PyExc_TypeError, std::string(function) + ": expected " + std::to_string(expected) + " positional arguments, got " + std::to_string(count));
}

OptionalNumber optional_number(PyObject* value, Where where) {
  if (value == Py_None) return {};
  return {1, number(value, where)};
}

Window window(PyObject* value, Where where) {
  if (value == Py_None) return {};
  const auto side = [where](PyObject* w) { return w == Py_None ? int64_t{-1} : integer(w, where); };
  if (!PyTuple_Check(value) && !PyList_Check(value)) {
    const int64_t both = side(value);
    return {1, both, both};
  }
  if (PySequence_Size(value) != 2)
    refuse(PyExc_ValueError, where, " must be an int or a pair", "(left, right)", std::to_string(PySequence_Size(value)) + " values");
  const int64_t left = side(py::object(py::handle(value)[py::int_(0)]).ptr());
  return {1, left, side(py::object(py::handle(value)[py::int_(1)]).ptr())};
}

namespace {

attile_config config_of(PyObject* cfg, const char* module, const char* type, const char* function, py::object& keeps_name) {
  attile_config config{};
  if (cfg == Py_None) return config;
  const py::object expected = py::module_::import(module).attr(type);
  if (!py::isinstance(cfg, expected))
    refuse(PyExc_TypeError, {function, "cfg"}, " has the wrong type", std::string(type) + " or None", type_name(cfg));
  const auto field = [&](const char* name, const char* argument) {
    const py::object value = py::handle(cfg).attr(name);
    return value.is_none() ? int64_t{0} : integer(value.ptr(), {function, argument});
  };
  config.block_q = field("block_q", "cfg.block_q");
  config.block_k = field("block_k", "cfg.block_k");
  config.num_splits = field("num_splits", "cfg.num_splits");
  keeps_name = py::handle(cfg).attr("kernel");
  if (keeps_name.is_none()) return config;
  if (!PyUnicode_Check(keeps_name.ptr()))
    refuse(PyExc_TypeError, {function, "cfg.kernel"}, " must be a string", "str or None", type_name(keeps_name.ptr()));
  config.kernel = PyUnicode_AsUTF8(keeps_name.ptr());
  if (!config.kernel) throw py::error_already_set();
  return config;
}

}  // namespace

attile_config flash_attention_config(PyObject* cfg, const char* function, py::object& keeps_name) {
  return config_of(cfg, "attile.flash", "FlashAttentionConfig", function, keeps_name);
}

attile_config flash_mla_config(PyObject* cfg, const char* function, py::object& keeps_name) {
  return config_of(cfg, "attile.mla", "FlashMLAConfig", function, keeps_name);
}

}  // namespace attile::python
