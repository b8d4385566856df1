// Reading arrays by DLPack (see dlpack.hpp).
#include "bindings/dlpack.hpp"

#include <memory>
#include <new>
#include <string>
#include <type_traits>

namespace attile::python {

const dlpack::ExchangeApi* dlpack::exchange_api(PyTypeObject* type) {
  const py::handle handle(reinterpret_cast<PyObject*>(type));
  const py::object capsule = py::getattr(handle, "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  auto* header = static_cast<ExchangeHeader*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (header && header->version.major > 1) header = header->previous;
  return header && header->version.major == 1 ? reinterpret_cast<const ExchangeApi*>(header) : nullptr;
}

dlpack::Tensor dlpack::describe(attile_tensor& t) {
  return {t.data, {t.device_type, t.device_id}, t.rank, {t.dtype.code, t.dtype.bits, t.dtype.lanes}, t.shape, t.strides, 0};
}

namespace {

// Producers from before the 2023 array API standard know neither keyword.
py::object dlpack_capsule(PyObject* array, PyObject* stream) {
  static const auto* names = new py::tuple(py::make_tuple("max_version", "copy"));
  static const auto* names_with_stream = new py::tuple(py::make_tuple("max_version", "copy", "stream"));
  static const auto* version = new py::tuple(py::make_tuple(1, 3));
  static const auto* method = new py::str("__dlpack__");
  PyObject* arguments[] = {array, version->ptr(), Py_False, stream};
  PyObject* capsule = PyObject_VectorcallMethod(method->ptr(), arguments, 1, (stream == Py_None ? names : names_with_stream)->ptr());
  if (!capsule && PyErr_ExceptionMatches(PyExc_TypeError)) {
    PyErr_Clear();
    capsule = PyObject_CallMethodNoArgs(array, method->ptr());
  }
  if (!capsule) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(capsule);
}

}  // namespace

Exported export_by_protocol(PyObject* array, PyObject* stream) {
  const py::object capsule = dlpack_capsule(array, stream);
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    auto* managed = static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (managed->version.major != 1) raise(PyExc_BufferError, "its DLPack version is " + std::to_string(managed->version.major));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
    Exported exported(managed);
    if (managed->flags & dlpack::kIsCopied) raise(PyExc_BufferError, "__dlpack__(copy=False) returned a copy");
    return exported;
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    auto* managed = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor");
    return Exported(managed);
  }
  raise(PyExc_BufferError, "__dlpack__ returned " + type_name(capsule.ptr()) + " and not an unused DLPack capsule");
}

attile_tensor tensor_of(const dlpack::Tensor& from, Where where) {
  attile_tensor t;
  t.dtype = {from.dtype.code, from.dtype.bits, from.dtype.lanes};
  constexpr int32_t kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13;
  t.device_type = from.device.type == kCudaHost ? kCpu : from.device.type == kCudaManaged ? kCuda : from.device.type;
  t.device_id = from.device.type == kCudaHost ? 0 : from.device.id;
  t.rank = from.ndim;
  if (t.rank > ATTILE_MAX_RANK)
    refuse(PyExc_ValueError, where, " has too many dimensions", "at most " + std::to_string(ATTILE_MAX_RANK), std::to_string(t.rank));
  bool empty = false;
  int64_t contiguous = 1;
  for (int32_t d = t.rank - 1; d >= 0; --d) {
    t.shape[d] = from.shape[d];
    t.strides[d] = from.strides ? from.strides[d] : contiguous;
    contiguous *= t.shape[d];
    empty = empty || t.shape[d] == 0;
  }
  t.data = from.data ? static_cast<char*>(from.data) + from.byte_offset : nullptr;
  if (!t.data && !empty)
    refuse(PyExc_NotImplementedError, where, " must hold data", "an array in memory", "one without (a fake or a lazy array)");
  return t;
}

// ---- Buffer ----------------------------------------------------------------------------------------------------------------
namespace {

// The memory lives as long as the Buffer or any capsule made of it; deleters run without the GIL, so only C++ counts.
struct Memory {
  explicit Memory(size_t bytes) : data(::operator new(bytes ? bytes : 1, kAlignment)) {}
  ~Memory() { ::operator delete(data, kAlignment); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  static constexpr std::align_val_t kAlignment{64};
  void* data;
};

struct Buffer {
  std::shared_ptr<Memory> memory;
  attile_tensor tensor;
};

template <class ManagedTensor>
struct Export {
  ManagedTensor managed{};
  Buffer buffer;  // owns shape and strides
};

template <class ManagedTensor>
ManagedTensor* export_buffer(const Buffer& buffer) {
  auto* e = new Export<ManagedTensor>{{}, buffer};
  e->managed.tensor = dlpack::describe(e->buffer.tensor);
  e->managed.context = e;
  e->managed.deleter = [](ManagedTensor* m) { delete static_cast<Export<ManagedTensor>*>(m->context); };
  return &e->managed;
}

template <class ManagedTensor>
py::object capsule_of(const Buffer& buffer, const char* name) {
  PyObject* capsule = PyCapsule_New(export_buffer<ManagedTensor>(buffer), name, [](PyObject* self) {
    // A consumer renames the capsule that it takes.
    const char* own = std::is_same_v<ManagedTensor, dlpack::Managed> ? "dltensor" : "dltensor_versioned";
    if (!PyCapsule_IsValid(self, own)) return;
    auto* managed = static_cast<ManagedTensor*>(PyCapsule_GetPointer(self, own));
    managed->deleter(managed);
  });
  if (!capsule) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(capsule);
}

// max_version is honoured to the letter: None asks for the capsule without a version, which is all that older JAX reads.
py::object buffer_dlpack(const Buffer& self, const py::object&, const py::object& max_version, const py::object&, const py::object&) {
  if (max_version.is_none() || max_version[py::int_(0)].cast<int>() < 1) return capsule_of<dlpack::Managed>(self, "dltensor");
  const py::object capsule = capsule_of<dlpack::ManagedVersioned>(self, "dltensor_versioned");
  static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"))->version = {1, 0};
  return capsule;
}

}  // namespace

void register_buffer(py::module_& m) {
  py::class_<Buffer>(m, "Buffer", "Memory of a result, aligned to 64 bytes, for a library that adopts it by DLPack.")
      .def("__dlpack__", &buffer_dlpack, py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
           py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
      .def("__dlpack_device__", [](const Buffer& self) { return py::make_tuple(self.tensor.device_type, self.tensor.device_id); });
}

py::object make_buffer(attile_tensor& like) {
  size_t bytes = like.dtype.bits / 8;
  for (int32_t d = 0; d < like.rank; ++d) bytes *= static_cast<size_t>(like.shape[d]);
  Buffer buffer{std::make_shared<Memory>(bytes), like};
  like.data = buffer.tensor.data = buffer.memory->data;
  return py::cast(std::move(buffer));
}

}  // namespace attile::python
