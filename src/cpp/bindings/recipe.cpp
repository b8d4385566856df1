// Recipes as text (see recipe.hpp): in hexadecimal, one after the other,
//
//   row of the function, arrays, scalars | parameters with null pointers | field of each tensor | kernel | arrays | scalars
#include "bindings/recipe.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

namespace attile::python {

inline constexpr size_t kMostTensors = 16;
using Tensors = std::array<const attile_tensor*, kMostTensors>;

struct RecipeFunction {
  size_t params_size, tensors;
  void (*get)(const void* params, Tensors& tensors);
  void (*set)(void* params, const Tensors& tensors);
  const char** (*kernel)(void* params);  // null: it has no configuration
  attile_status (*create)(const void* params, attile_op** op);
};

namespace {

template <class Params, attile_status (*kCreate)(const Params*, attile_op**), const attile_tensor* Params::*... kFields>
constexpr RecipeFunction row() {
  static_assert(sizeof...(kFields) <= kMostTensors);
  return {sizeof(Params),
          sizeof...(kFields),
          [](const void* params, Tensors& tensors) {
            size_t i = 0;
            ((tensors[i++] = static_cast<const Params*>(params)->*kFields), ...);
          },
          [](void* params, const Tensors& tensors) {
            size_t i = 0;
            ((static_cast<Params*>(params)->*kFields = tensors[i++]), ...);
          },
          [](void* params) -> const char** {
            if constexpr (requires(Params p) { p.config; }) return &static_cast<Params*>(params)->config.kernel;
            return nullptr;
          },
          [](const void* params, attile_op** op) { return kCreate(static_cast<const Params*>(params), op); }};
}

using Flash = attile_flash_attention_params;
using KvCache = attile_flash_attention_with_kvcache_params;
using Merge = attile_merge_states_params;
using Mla = attile_mla_attention_params;
using MlaDecode = attile_mla_decode_params;  // without a plan

constexpr RecipeFunction kFunctions[] = {
    row<Flash, attile_flash_attention_create, &Flash::query, &Flash::key, &Flash::value, &Flash::bias, &Flash::cum_seqlens_q,
        &Flash::cum_seqlens_k, &Flash::softmax_aux, &Flash::attention_mask, &Flash::q_segment_ids, &Flash::kv_segment_ids, &Flash::q_scale,
        &Flash::k_scale, &Flash::v_scale>(),
    row<KvCache, attile_flash_attention_with_kvcache_create, &KvCache::q, &KvCache::k_cache, &KvCache::v_cache, &KvCache::cache_seqlens,
        &KvCache::page_table, &KvCache::softmax_aux>(),
    row<Merge, attile_merge_states_create, &Merge::out_a, &Merge::lse_a, &Merge::out_b, &Merge::lse_b>(),
    row<Mla, attile_mla_attention_create, &Mla::query, &Mla::key_value, &Mla::w_kc, &Mla::w_vc, &Mla::b_q, &Mla::b_k, &Mla::cu_seqlens,
        &Mla::bias, &Mla::softmax_aux, &Mla::attention_mask>(),
    row<MlaDecode, attile_mla_decode_create, &MlaDecode::q_nope, &MlaDecode::q_pe, &MlaDecode::ckv, &MlaDecode::kpe, &MlaDecode::kv_lens,
        &MlaDecode::page_table, &MlaDecode::ckv_scale, &MlaDecode::softmax_aux>(),
};

constexpr int32_t kNone = -1;

class Writer {
 public:
  std::string text;

  void bytes(const void* from, size_t count) {
    constexpr char kDigits[] = "0123456789abcdef";
    for (const auto* at = static_cast<const unsigned char*>(from); count-- > 0; ++at) {
      text += kDigits[*at >> 4];
      text += kDigits[*at & 15];
    }
  }
  template <class T>
  void value(const T& x) {
    bytes(&x, sizeof x);
  }
};

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  void bytes(void* to, size_t count) {
    if (text_.size() < 2 * count) throw std::invalid_argument("attile: the text of a call is too short");
    auto* out = static_cast<unsigned char*>(to);
    for (size_t i = 0; i < count; ++i) out[i] = static_cast<unsigned char>(digit(text_[2 * i]) << 4 | digit(text_[2 * i + 1]));
    text_.remove_prefix(2 * count);
  }
  template <class T>
  T value() {
    T x;
    bytes(&x, sizeof x);
    return x;
  }
  bool at_end() const { return text_.empty(); }

 private:
  static int digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    throw std::invalid_argument("attile: the text of a call is not hexadecimal");
  }
  std::string_view text_;
};

// As the runtime will hold it: dense, on the device of the first array.
attile_tensor as_buffer(const attile_tensor& from, const attile_tensor& first) {
  attile_tensor t{};
  t.dtype = from.dtype;
  t.device_type = first.device_type;
  t.device_id = first.device_id;
  t.rank = from.rank;
  int64_t stride = 1;
  for (int32_t d = t.rank - 1; d >= 0; --d) {
    t.shape[d] = from.shape[d];
    t.strides[d] = stride;
    stride *= t.shape[d];
  }
  return t;
}

}  // namespace

template <>
const RecipeFunction& recipe_function<Flash>() {
  return kFunctions[0];
}
template <>
const RecipeFunction& recipe_function<KvCache>() {
  return kFunctions[1];
}
template <>
const RecipeFunction& recipe_function<Merge>() {
  return kFunctions[2];
}
template <>
const RecipeFunction& recipe_function<Mla>() {
  return kFunctions[3];
}
template <>
const RecipeFunction& recipe_function<MlaDecode>() {
  return kFunctions[4];
}

std::string write_recipe(const RecipeFunction& function, const void* params, const Call& call) {
  Tensors tensors{};
  function.get(params, tensors);
  std::vector<std::byte> copy(static_cast<const std::byte*>(params), static_cast<const std::byte*>(params) + function.params_size);
  function.set(copy.data(), Tensors{});
  std::string kernel;
  if (const char** name = function.kernel(copy.data()); name && *name) {
    kernel = *name;
    *name = nullptr;
  }

  std::array<int32_t, kMostTensors> fields;
  std::vector<const attile_tensor*> scalars;
  const std::span<const Borrowed> arrays = call.arrays();
  for (size_t i = 0; i < function.tensors; ++i) {
    const auto found = std::find_if(arrays.begin(), arrays.end(), [&](const Borrowed& b) { return &b.tensor == tensors[i]; });
    if (!tensors[i]) {
      fields[i] = kNone;
    } else if (found != arrays.end()) {
      fields[i] = static_cast<int32_t>(found - arrays.begin());
    } else {
      scalars.push_back(tensors[i]);
      fields[i] = kNone - static_cast<int32_t>(scalars.size());
    }
  }

  Writer to;
  to.value(static_cast<uint32_t>(&function - kFunctions));
  to.value(static_cast<uint32_t>(arrays.size()));
  to.value(static_cast<uint32_t>(scalars.size()));
  to.value(static_cast<uint32_t>(kernel.size()));
  to.bytes(copy.data(), copy.size());
  to.bytes(fields.data(), function.tensors * sizeof(int32_t));
  to.bytes(kernel.data(), kernel.size());
  for (const Borrowed& b : arrays) to.value(as_buffer(b.tensor, arrays[0].tensor));
  for (const attile_tensor* scalar : scalars) {
    attile_tensor t = *scalar;
    double value = 0;
    std::memcpy(&value, t.data, t.dtype.bits / 8);
    t.data = nullptr;
    to.value(t);
    to.value(value);
  }
  return to.text;
}

Recipe::Recipe(std::string_view text) {
  Reader from(text);
  const auto row = from.value<uint32_t>(), array_count = from.value<uint32_t>(), scalar_count = from.value<uint32_t>(),
             kernel_size = from.value<uint32_t>();
  if (row >= std::size(kFunctions)) throw std::invalid_argument("attile: the text of a call names a function of another build");
  function_ = &kFunctions[row];
  params_.resize(function_->params_size);
  from.bytes(params_.data(), params_.size());
  fields_.resize(function_->tensors);
  from.bytes(fields_.data(), fields_.size() * sizeof(int32_t));
  kernel_.resize(kernel_size);
  from.bytes(kernel_.data(), kernel_size);
  for (uint32_t i = 0; i < array_count; ++i) arrays.push_back(from.value<attile_tensor>());
  for (uint32_t i = 0; i < scalar_count; ++i) {
    const auto tensor = from.value<attile_tensor>();
    scalars_.push_back({tensor, from.value<double>()});
  }
  const auto fits = [&](int32_t field) {
    return field >= 0 ? static_cast<size_t>(field) < arrays.size() : static_cast<size_t>(kNone - field) <= scalars_.size();
  };
  if (!from.at_end() || !std::all_of(fields_.begin(), fields_.end(), fits))
    throw std::invalid_argument("attile: the text of a call is of another build");
}

attile_status Recipe::create(attile_op** op) {
  Tensors tensors{};
  for (size_t i = 0; i < fields_.size(); ++i) {
    const int32_t field = fields_[i];
    if (field >= 0) {
      tensors[i] = &arrays[static_cast<size_t>(field)];
    } else if (field < kNone) {
      Scalar& scalar = scalars_[static_cast<size_t>(kNone - field - 1)];
      scalar.tensor.data = &scalar.value;
      tensors[i] = &scalar.tensor;
    }
  }
  function_->set(params_.data(), tensors);
  if (const char** kernel = function_->kernel(params_.data())) *kernel = kernel_.empty() ? nullptr : kernel_.c_str();
  return function_->create(params_.data(), op);
}

}  // namespace attile::python
