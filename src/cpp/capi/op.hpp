// An operation behind the C interface: what create() validated and planned, the outputs that the caller bound, how it runs.
#pragma once

#include <span>
#include <string>

#include "attile/attile.h"
#include "core/kernel_table.hpp"
#include "core/view.hpp"

struct attile_op {
  explicit attile_op(const char* name) : function(name) {}
  virtual ~attile_op() = default;
  attile_op(const attile_op&) = delete;
  attile_op& operator=(const attile_op&) = delete;

  virtual void bind_outputs(const attile_tensor* const* given, int32_t count) = 0;  // shapes and dtypes are checked already
  virtual void run(void* workspace, const attile::Execution& execution) = 0;
  virtual std::string explain() const = 0;
  virtual size_t workspace_bytes() const { return 0; }

  static constexpr int32_t kMaxInputs = 16, kMaxOutputs = 8;

  void add_input(const char* name, const attile_tensor* t) {
    if (t) inputs[num_inputs++] = {name, attile::byte_range(*t)};
  }
  void add_output(const char* name, attile::DType dtype, const attile_tensor& like, std::span<const int64_t> shape);
  void add_output(const char* name, attile::DType dtype, const attile_tensor& like, std::initializer_list<int64_t> shape) {
    add_output(name, dtype, like, std::span(shape.begin(), shape.size()));
  }

  const char* function;
  struct Input {
    const char* name;
    attile::ByteRange bytes;
  } inputs[kMaxInputs];
  int32_t num_inputs = 0;
  attile_tensor outputs[kMaxOutputs];
  const char* output_names[kMaxOutputs];
  int32_t num_outputs = 0;
  bool bound = false;
};

namespace attile {

// The library's scratch of the calling thread: at least `bytes`, aligned to a page, kept for the next call.
void* thread_scratch(size_t bytes);

// The operation of one public function; the C interface catches what they throw.
attile_op* create_flash_attention(const attile_flash_attention_params& params);
attile_op* create_flash_attention_backward(const attile_flash_attention_backward_params& params);
attile_op* create_flash_attention_with_kvcache(const attile_flash_attention_with_kvcache_params& params);
attile_op* create_mla_attention(const attile_mla_attention_params& params);
attile_op* create_mla_attention_backward(const attile_mla_attention_backward_params& params);
attile_op* create_merge_states(const attile_merge_states_params& params);
attile_op* create_mla_decode(const attile_mla_decode_params& params);

}  // namespace attile
