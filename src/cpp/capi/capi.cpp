// The C interface: catches what the library throws, keeps the last error of a thread, and hands operations on.
#include <cstddef>
#include <cstring>
#include <new>
#include <string>

#include "attile/attile.h"
#include "capi/cuda_library.hpp"
#include "capi/json.hpp"
#include "capi/mla_plan.hpp"
#include "capi/op.hpp"
#include "core/check.hpp"
#include "core/kernel_table.hpp"
#include "core/validate.hpp"
#include "cpu/features.hpp"
#include "cpu/threads.hpp"

void attile_op::add_output(const char* name, attile::DType dtype, const attile_tensor& like, std::span<const int64_t> shape) {
  attile_tensor& t = outputs[num_outputs];
  output_names[num_outputs++] = name;
  t = {};
  t.dtype = attile::to_dlpack(dtype);
  t.device_type = like.device_type;
  t.device_id = like.device_id;
  for (const int64_t extent : shape) t.shape[t.rank++] = extent;
  int64_t stride = 1;
  for (int32_t d = t.rank - 1; d >= 0; --d) {
    t.strides[d] = stride;
    stride *= t.shape[d] > 0 ? t.shape[d] : 1;
  }
}

namespace attile {
namespace {

thread_local std::string last_error;
thread_local std::string report;

template <class Body>
attile_status guarded(Body&& body) noexcept {
  try {
    body();
    return ATTILE_OK;
  } catch (const Error& e) {
    last_error = e.what();
    return e.status;
  } catch (const std::bad_alloc&) {
    last_error = "attile: out of memory";
    return ATTILE_OUT_OF_MEMORY;
  } catch (const std::exception& e) {
    last_error = e.what();
    return ATTILE_RUNTIME_ERROR;
  }
}

// A caller built against another version may know fewer fields (the rest are zero) or more (of which none may be lost silently).
template <class Params>
Params read_params(const Params* given, const char* function) {
  if (!given || given->struct_size < sizeof(size_t)) throw Error(ATTILE_VALUE_ERROR, std::string(function) + ": params.struct_size is not set");
  if (given->struct_size > sizeof(Params))
    value_error(function, "params comes from a newer attile.h", "at most " + std::to_string(sizeof(Params)) + " bytes", static_cast<int64_t>(given->struct_size));
  Params params{};
  std::memcpy(static_cast<void*>(&params), given, given->struct_size);
  return params;
}

void bind(attile_op& op, const attile_tensor* const* outputs, int32_t count) {
  if (count < 1 || count > op.num_outputs) value_error(op.function, "wrong number of outputs", int64_t{op.num_outputs}, int64_t{count});
  ByteRange ranges[attile_op::kMaxOutputs];
  for (int32_t i = 0; i < count; ++i) {
    if (!outputs[i]) throw Error(ATTILE_VALUE_ERROR, std::string(op.function) + ": output " + op.output_names[i] + " is null");
    validate_output(op.function, op.output_names[i], *outputs[i], op.outputs[i]);
    ranges[i] = byte_range(*outputs[i]);
    for (int32_t j = 0; j < op.num_inputs; ++j)
      if (ranges[i].overlaps(op.inputs[j].bytes))
        value_error(op.function, std::string(op.output_names[i]) + " must not overlap an input", "separate memory", std::string("memory shared with ") + op.inputs[j].name);
    for (int32_t j = 0; j < i; ++j)
      if (ranges[i].overlaps(ranges[j]))
        value_error(op.function, std::string(op.output_names[i]) + " must not overlap another output", "separate memory", std::string("memory shared with ") + op.output_names[j]);
  }
  op.bind_outputs(outputs, count);
  op.bound = true;
}

// The CUDA kernels close the list of kernels; then what there is of CUDA, or why there is none.
void add_cuda(Json& json) {
  std::string why;
  const CudaLibrary* library = find_cuda_library(why);
  const int count = library ? cuda_device_count(why) : 0;
  const auto add_table = [&](const char* function, std::span<const Kernel> kernels) {
    for (const Kernel& kernel : kernels)
      json.open().field("name", kernel.name).field("isa", kernel.isa).field("device", "cuda").field("function", function).flag("available", count > 0 && kernel.available()).close();
  };
  if (library) {
    add_table("flash_attention", library->forward_kernels);
    add_table("flash_attention_backward", library->backward_kernels);
    add_table("mla_attention", library->mla_attention_kernels);
    add_table("mla_attention_backward", library->mla_attention_backward_kernels);
    add_table("mla_decode", library->mla_decode_kernels);
  }
  json.close(']').flag("cuda", count > 0);
  if (!why.empty()) json.field("cuda_missing", why);
  if (library) {
    json.field("cuda_runtime", std::to_string(library->runtime_version / 1000) + "." + std::to_string(library->runtime_version % 1000 / 10));
    json.field("cuda_architectures", library->architectures);
  }
  json.key("gpus").open('[');
  for (int id = 0; id < count; ++id) {
    const CudaDevice& d = cuda_device(id);
    json.open().field("name", d.name).field("compute_capability", std::to_string(d.major) + "." + std::to_string(d.minor));
    json.field("memory_bytes", d.memory_bytes).field("multiprocessors", int64_t{d.multiprocessors}).close();
  }
  json.close(']');
}

}  // namespace

void* thread_scratch(size_t bytes) {
  struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
    ~Buffer() { ::operator delete(data, std::align_val_t{4096}); }
  };
  thread_local Buffer buffer;
  if (buffer.bytes < bytes) {
    void* larger = ::operator new(bytes, std::align_val_t{4096});
    ::operator delete(buffer.data, std::align_val_t{4096});
    buffer.data = larger;
    buffer.bytes = bytes;
  }
  return buffer.data;
}

}  // namespace attile

using namespace attile;

extern "C" {

attile_status attile_flash_attention_create(const attile_flash_attention_params* params, attile_op** op) {
  return guarded([&] { *op = create_flash_attention(read_params(params, "flash_attention")); });
}

attile_status attile_flash_attention_backward_create(const attile_flash_attention_backward_params* params, attile_op** op) {
  return guarded([&] { *op = create_flash_attention_backward(read_params(params, "flash_attention_backward")); });
}

attile_status attile_flash_attention_with_kvcache_create(const attile_flash_attention_with_kvcache_params* params, attile_op** op) {
  return guarded([&] { *op = create_flash_attention_with_kvcache(read_params(params, "flash_attention_with_kvcache")); });
}

attile_status attile_mla_attention_create(const attile_mla_attention_params* params, attile_op** op) {
  return guarded([&] { *op = create_mla_attention(read_params(params, "mla_attention")); });
}

attile_status attile_mla_attention_backward_create(const attile_mla_attention_backward_params* params, attile_op** op) {
  return guarded([&] { *op = create_mla_attention_backward(read_params(params, "mla_attention_backward")); });
}

attile_status attile_merge_states_create(const attile_merge_states_params* params, attile_op** op) {
  return guarded([&] { *op = create_merge_states(read_params(params, "merge_states")); });
}

attile_status attile_mla_plan_create(const attile_mla_plan_params* params, attile_mla_plan** plan) {
  return guarded([&] { *plan = create_mla_plan(read_params(params, "BatchMLAPagedAttentionWrapper.plan")); });
}

size_t attile_mla_plan_device_bytes(const attile_mla_plan* plan) { return plan->plan.storage.size() * sizeof(int64_t); }

attile_status attile_mla_plan_to_device(attile_mla_plan* plan, int32_t device_id, void* memory, void* stream) {
  return guarded([&] { copy_mla_plan(plan->plan, device_id, memory, stream); });
}

void attile_mla_plan_destroy(attile_mla_plan* plan) { delete plan; }

attile_status attile_mla_decode_create(const attile_mla_decode_params* params, attile_op** op) {
  return guarded([&] { *op = create_mla_decode(read_params(params, "mla_decode")); });
}

attile_status attile_append_paged_mla_kv_cache(const attile_append_paged_mla_kv_cache_params* params, void* stream) {
  return guarded([&] { append_paged_mla_kv_cache(read_params(params, "append_paged_mla_kv_cache"), stream); });
}

int32_t attile_op_num_outputs(const attile_op* op) { return op->num_outputs; }

attile_status attile_op_output(const attile_op* op, int32_t index, attile_tensor* output) {
  return guarded([&] {
    if (index < 0 || index >= op->num_outputs) value_error(op->function, "no such output", "less than " + std::to_string(op->num_outputs), int64_t{index});
    *output = op->outputs[index];
  });
}

attile_status attile_op_bind(attile_op* op, const attile_tensor* const* outputs, int32_t count) {
  return guarded([&] { bind(*op, outputs, count); });
}

size_t attile_op_workspace_bytes(const attile_op* op) { return op->workspace_bytes(); }

attile_status attile_op_run(attile_op* op, void* workspace, void* stream, const attile_executor* executor) {
  return guarded([&] {
    if (!op->bound) throw Error(ATTILE_RUNTIME_ERROR, std::string(op->function) + ": run before bind");
    const bool on_cpu = op->outputs[0].device_type == 1;
    if (!workspace && on_cpu) workspace = thread_scratch(op->workspace_bytes());
    if (!workspace && op->workspace_bytes() > 0)
      value_error(op->function, "workspace must be memory of the device", std::to_string(op->workspace_bytes()) + " bytes", "null");
    op->run(workspace, {executor, stream, op->outputs[0].device_id});
  });
}

const char* attile_op_explain(const attile_op* op) {
  report.clear();
  return guarded([&] { report = op->explain(); }) == ATTILE_OK ? report.c_str() : "{}";
}

void attile_op_destroy(attile_op* op) { delete op; }

const char* attile_last_error(void) { return last_error.c_str(); }

attile_status attile_cuda_synchronize(int32_t device_id, void* stream) {
  constexpr const char* kName = "attile_cuda_synchronize";
  return guarded([&] {
    const CudaLibrary& library = cuda_library(kName, device_id);
    on_cuda_device(library, kName, device_id, [&] { library.synchronize(stream); });
  });
}

int32_t attile_abi_version(void) { return ATTILE_ABI_VERSION; }

const char* attile_show_config(void) {
  report.clear();
  const attile_status status = guarded([&] {
    Json json;
    json.open();
    json.field("version", std::to_string(ATTILE_VERSION_MAJOR) + "." + std::to_string(ATTILE_VERSION_MINOR) + "." + std::to_string(ATTILE_VERSION_PATCH));
    json.field("abi_version", int64_t{ATTILE_ABI_VERSION}).field("compiler", __VERSION__);
    json.key("cpu_features").raw(cpu_features_json());
    json.key("kernels").open('[');
    const struct { const char* function; std::span<const Kernel> kernels; } tables[] = {
        {"flash_attention", cpu_forward_kernels()}, {"mla_attention", cpu_mla_kernels()}, {"mla_decode", cpu_mla_decode_kernels()}};
    for (const auto& [function, kernels] : tables)
      for (const Kernel& kernel : kernels)
        json.open().field("name", kernel.name).field("isa", kernel.isa).field("device", "cpu").field("function", function).flag("available", kernel.available()).close();
    add_cuda(json);
    json.field("num_threads", int64_t{num_threads()}).close();
    report = json.text();
  });
  return status == ATTILE_OK ? report.c_str() : "{}";
}

attile_status attile_set_num_threads(int32_t n) {
  return guarded([&] {
    if (n < 0) value_error("set_num_threads", "n must not be negative", "0 (the default) or more", int64_t{n});
    set_num_threads(n);
  });
}

int32_t attile_get_num_threads(void) { return num_threads(); }

}  // extern "C"
