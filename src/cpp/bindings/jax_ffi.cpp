// The function that XLA calls to run an attile call on its own buffers and stream (see recipe.hpp, xla_ffi_abi.hpp). It knows no Python:
// XLA calls it from its own threads.
#include <cstring>
#include <stdexcept>

#include "bindings/bindings.hpp"
#include "bindings/recipe.hpp"
#include "bindings/xla_ffi_abi.hpp"

namespace attile::python {
namespace {

constexpr std::string_view kAttribute = "call";
constexpr size_t kAlignment = 256;     // of the workspace
constexpr size_t kMostAlignment = 16;  // that XLA grants

struct XlaError {
  xla::Error* error;
};

xla::Error* make_error(const xla::Frame& frame, xla::ErrorCode code, const char* message) {
  xla::ErrorCreate args{sizeof args, nullptr, message, code};
  return frame.api->error_create(&args);
}

void check_status(const xla::Frame& frame, attile_status status) {
  if (status == ATTILE_OK) return;
  const auto code = status == ATTILE_OUT_OF_MEMORY     ? xla::ErrorCode::resource_exhausted
                    : status == ATTILE_NOT_IMPLEMENTED ? xla::ErrorCode::unimplemented
                    : status == ATTILE_RUNTIME_ERROR   ? xla::ErrorCode::internal
                                                       : xla::ErrorCode::invalid_argument;
  throw XlaError{make_error(frame, code, attile_last_error())};
}

std::string_view call_text(const xla::Frame& frame) {
  for (int64_t i = 0; i < frame.attributes.size; ++i) {
    const xla::Span& name = *frame.attributes.names[i];
    if (std::string_view(name.data, name.size) != kAttribute || frame.attributes.types[i] != xla::kStringAttribute) continue;
    const auto& text = *static_cast<const xla::Span*>(frame.attributes.values[i]);
    return {text.data, text.size};
  }
  throw std::invalid_argument("attile: XLA gave no description of the call");
}

void fill(attile_tensor& tensor, const xla::Buffer& buffer) {
  if (buffer.rank != tensor.rank || std::memcmp(buffer.dims, tensor.shape, static_cast<size_t>(tensor.rank) * sizeof(int64_t)) != 0)
    throw std::invalid_argument("attile: XLA gave an array of another shape than the call was planned for");
  tensor.data = buffer.data;
}

void* workspace(const xla::Frame& frame, size_t bytes) {
  xla::Allocate args{sizeof args, nullptr, frame.context, bytes + kAlignment, kMostAlignment, nullptr};
  if (xla::Error* error = frame.api->allocate(&args)) throw XlaError{error};
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(args.data) + kAlignment - 1) / kAlignment * kAlignment);
}

void execute(const xla::Frame& frame) {
  Recipe recipe(call_text(frame));
  if (frame.arguments.size != static_cast<int64_t>(recipe.arrays.size()))
    throw std::invalid_argument("attile: XLA gave another number of arrays than the call takes");
  for (size_t i = 0; i < recipe.arrays.size(); ++i) fill(recipe.arrays[i], *frame.arguments.items[i]);

  attile_op* created = nullptr;
  check_status(frame, recipe.create(&created));
  const Operation op(created);
  const auto count = static_cast<int32_t>(frame.results.size);
  if (count != attile_op_num_outputs(op.get()))
    throw std::invalid_argument("attile: XLA wants another number of results than the call has");
  std::vector<attile_tensor> outputs(static_cast<size_t>(count));
  std::vector<const attile_tensor*> bound;
  for (int32_t i = 0; i < count; ++i) {
    attile_tensor& output = outputs[static_cast<size_t>(i)];
    check_status(frame, attile_op_output(op.get(), i, &output));
    fill(output, *frame.results.items[i]);
    bound.push_back(&output);
  }
  check_status(frame, attile_op_bind(op.get(), bound.data(), count));

  if (recipe.arrays[0].device_type == 1) return check_status(frame, attile_op_run(op.get(), nullptr, nullptr, nullptr));
  xla::StreamGet stream{sizeof stream, nullptr, frame.context, nullptr};
  if (xla::Error* error = frame.api->stream_get(&stream)) throw XlaError{error};
  const size_t bytes = attile_op_workspace_bytes(op.get());
  check_status(frame, attile_op_run(op.get(), bytes > 0 ? workspace(frame, bytes) : nullptr, stream.stream, nullptr));
}

bool answer_metadata(xla::Extension* extensions) {
  for (xla::Extension* e = extensions; e; e = e->next) {
    if (e->type != xla::kMetadataExtension) continue;
    xla::Metadata& metadata = *reinterpret_cast<xla::MetadataExtension*>(e)->metadata;
    metadata.version.major = 0;
    metadata.version.minor = 1;
    metadata.traits = 0;
    return true;
  }
  return false;
}

extern "C" xla::Error* attile_xla_handler(xla::Frame* frame) noexcept {
  if (answer_metadata(frame->extensions)) return nullptr;
  try {
    execute(*frame);
    return nullptr;
  } catch (const XlaError& error) {
    return error.error;
  } catch (const std::bad_alloc&) {
    return make_error(*frame, xla::ErrorCode::resource_exhausted, "attile: host memory ran out");
  } catch (const std::exception& error) {
    return make_error(*frame, xla::ErrorCode::internal, error.what());
  }
}

PyObject* xla_handler(PyObject*, PyObject*) { return PyCapsule_New(reinterpret_cast<void*>(&attile_xla_handler), nullptr, nullptr); }

PyMethodDef functions[] = {
    {"xla_handler", &xla_handler, METH_NOARGS, "The function that runs calls under XLA, a capsule for jax.ffi.register_ffi_target."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void register_jax_ffi(py::module_& m) { add_functions(m, functions); }

}  // namespace attile::python
