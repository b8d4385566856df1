// The C interface between XLA and a handler of its foreign function calls, version 0.1, as far as attile speaks it: our own declarations,
// so that no build needs jaxlib. Every jaxlib since 0.5 takes handlers of 0.1; tests/test_jax_ffi.py compares sizes and offsets with the
// header of the one that is installed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace attile::python::xla {

struct Extension {
  size_t struct_size;
  int32_t type;
  Extension* next;
};
inline constexpr int32_t kMetadataExtension = 1;

struct Version {
  size_t struct_size;
  Extension* extensions;
  int32_t major, minor;
};

// How a handler says what it is: XLA calls it once with this extension when it is registered.
struct Metadata {
  size_t struct_size;
  Version version;
  uint32_t traits;
};
struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

struct Buffer {
  size_t struct_size;
  Extension* extensions;
  int32_t dtype;
  void* data;
  int64_t rank;
  int64_t* dims;
};

struct Span {
  const char* data;
  size_t size;
};

struct Buffers {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int32_t* types;
  Buffer** items;
};

inline constexpr int32_t kStringAttribute = 4;
struct Attributes {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int32_t* types;
  Span** names;
  void** values;
};

enum class ErrorCode : int32_t { invalid_argument = 3, resource_exhausted = 8, unimplemented = 12, internal = 13 };
struct Error;
struct ErrorCreate {
  size_t struct_size;
  Extension* extensions;
  const char* message;
  ErrorCode code;
};

struct Context;
struct StreamGet {
  size_t struct_size;
  Extension* extensions;
  Context* context;
  void* stream;  // out
};

// Device memory that lives until the call's work on the stream is done.
struct Allocate {
  size_t struct_size;
  Extension* extensions;
  Context* context;
  size_t size, alignment;
  void* data;  // out
};

struct Api {
  size_t struct_size;
  Extension* extensions;
  Version version;
  void* internal;
  Error* (*error_create)(ErrorCreate*);
  void *error_get_message, *error_destroy, *handler_register;
  Error* (*stream_get)(StreamGet*);
  void *type_register, *execution_context_get, *state_set, *state_get;
  Error* (*allocate)(Allocate*);
};

struct Frame {
  size_t struct_size;
  Extension* extensions;
  const Api* api;
  Context* context;
  int32_t stage;
  Buffers arguments, results;
  Attributes attributes;
};

}  // namespace attile::python::xla
