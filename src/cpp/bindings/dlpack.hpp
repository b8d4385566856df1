// DLPack 1.3: the structs of its binary interface, declared here so that no header of it is needed, and the two ways to read an
// array with it.
//
//   exchange   a table of C functions that a type publishes as __dlpack_c_exchange_api__ (no Python call an array, about 75 ns)
//   protocol   array.__dlpack__(max_version=(1, 3), copy=False), a capsule; older producers know no keyword (about 2.5 us)
//
// Limits: at most ATTILE_MAX_RANK dimensions.
#pragma once

#include <cstdint>
#include <utility>

#include "bindings/errors.hpp"

namespace attile::python {

namespace dlpack {

struct Version {
  uint32_t major, minor;
};
struct Device {
  int32_t type, id;
};
struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: C-contiguous (before 1.2)
  uint64_t byte_offset;
};
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};
struct ManagedVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;
  Tensor tensor;
};
inline constexpr uint64_t kReadOnly = 1, kIsCopied = 2;

struct ExchangeHeader {
  Version version;
  ExchangeHeader* previous;  // an older table, or null
};
struct ExchangeApi {
  ExchangeHeader header;
  int (*allocate)(Tensor* prototype, ManagedVersioned** out, void* context,
                  void (*set_error)(void* context, const char* kind, const char* message));
  int (*managed_from_object)(void* object, ManagedVersioned** out);
  int (*managed_to_object)(ManagedVersioned* tensor, void** object);
  int (*tensor_from_object)(void* object, Tensor* out);  // may be null
  int (*current_stream)(int32_t device_type, int32_t device_id, void** stream);  // may be null
};

// The table that a type publishes in a version we speak, or null.
const ExchangeApi* exchange_api(PyTypeObject* type);

// The same array in DLPack's terms; shape and strides stay the tensor's.
Tensor describe(attile_tensor& tensor);

}  // namespace dlpack

// A reference to an exported tensor, given back on destruction.
class Exported {
 public:
  Exported() = default;
  explicit Exported(dlpack::Managed* m) : legacy_(m) {}
  explicit Exported(dlpack::ManagedVersioned* m) : versioned_(m) {}
  Exported(Exported&& other) noexcept : legacy_(other.legacy_), versioned_(other.versioned_) { other.release(); }
  Exported& operator=(Exported&& other) noexcept {
    std::swap(legacy_, other.legacy_);
    std::swap(versioned_, other.versioned_);
    return *this;
  }
  ~Exported() {
    if (legacy_ && legacy_->deleter) legacy_->deleter(legacy_);
    if (versioned_ && versioned_->deleter) versioned_->deleter(versioned_);
  }
  const dlpack::Tensor& tensor() const { return versioned_ ? versioned_->tensor : legacy_->tensor; }
  // A capsule without a version does not say whether it may be written.
  bool versioned() const { return versioned_ != nullptr; }
  bool read_only() const { return versioned_ && (versioned_->flags & dlpack::kReadOnly) != 0; }
  void release() { legacy_ = nullptr, versioned_ = nullptr; }

 private:
  dlpack::Managed* legacy_ = nullptr;
  dlpack::ManagedVersioned* versioned_ = nullptr;
};

// array.__dlpack__() without a copy; with stream= where that is not None. Raises what the producer raised.
Exported export_by_protocol(PyObject* array, PyObject* stream);

// The view of a DLPack tensor: pinned host memory counts as the host's, managed memory as the device's. Raises ValueError where
// attile_tensor cannot express it.
attile_tensor tensor_of(const dlpack::Tensor& from, Where where);

// Registers Buffer: memory of ours, aligned to 64 bytes, that a library without an allocator for others adopts by __dlpack__.
void register_buffer(py::module_& m);

// A new Buffer with room for `like` (C-contiguous); sets like.data.
py::object make_buffer(attile_tensor& like);

}  // namespace attile::python
