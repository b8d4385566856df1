// append_paged_mla_kv_cache: token t goes to page kv_indices[kv_indptr[b] + position / page_size], row position % page_size, of its
// sequence b. Two passes: everything is checked before anything is written. What lies on a GPU is known by shape only; its kernel looks.
#include <cstring>
#include <string>
#include <vector>

#include "capi/cuda_library.hpp"
#include "capi/mla_plan.hpp"
#include "core/option_checks.hpp"

namespace attile {
namespace {

constexpr const char* kFunction = "append_paged_mla_kv_cache";

std::string entry(const char* name, int64_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

void check_cache(const char* name, const attile_tensor& append, const char* cache_name, const attile_tensor& cache,
                 const attile_tensor& first) {
  const char* f = kFunction;
  check_rank(f, name, append, {2});
  check_rank(f, cache_name, cache, {3});
  if (dtype_of(append.dtype) == DType::none)
    type_error(f, std::string(name) + " has an unsupported dtype", "a floating dtype", name_of(append.dtype));
  if (dtype_of(append.dtype) != dtype_of(cache.dtype))
    type_error(f, std::string(name) + ".dtype must equal " + cache_name + ".dtype", name_of(cache.dtype), name_of(append.dtype));
  check_size(f, name, append, 0, first.shape[0], "append_ckv.shape[0]");
  check_size(f, name, append, 1, cache.shape[2], axis(cache_name, 2));
  check_contiguous(f, name, append);
  check_contiguous(f, cache_name, cache);
  if (byte_range(append).overlaps(byte_range(cache)))
    value_error(f, std::string(cache_name) + " must not overlap an input", "separate memory", std::string("memory shared with ") + name);
}

// The index arrays of the call, their shapes checked.
PagedAppend index_arrays(const attile_append_paged_mla_kv_cache_params& p) {
  const char* f = kFunction;
  const int64_t tokens = p.append_ckv->shape[0];
  PagedAppend a;
  a.batch_indices = index_view(f, "batch_indices", *p.batch_indices);
  a.positions = index_view(f, "positions", *p.positions);
  a.kv_indices = index_view(f, "kv_indices", *p.kv_indices);
  a.kv_indptr = index_view(f, "kv_indptr", *p.kv_indptr);
  a.kv_last_page_len = index_view(f, "kv_last_page_len", *p.kv_last_page_len);
  const int64_t sequences = a.kv_indptr.size - 1;
  if (sequences < 0) value_error(f, "kv_indptr must have at least one entry", "length batch + 1", a.kv_indptr.size);
  if (a.kv_last_page_len.size != sequences)
    value_error(f, "kv_last_page_len.shape[0] must be the batch size, kv_indptr.shape[0] - 1", sequences, a.kv_last_page_len.size);
  for (const auto& [name, x] : {std::pair{"batch_indices", a.batch_indices}, std::pair{"positions", a.positions}})
    if (x.size != tokens) value_error(f, axis(name, 0) + " must equal append_ckv.shape[0]", tokens, x.size);
  return a;
}

// Of index arrays on the host.
std::vector<TokenPlace> find_places(const PagedAppend& a, int64_t pages, int64_t page_size) {
  const char* f = kFunction;
  const IndexView &batch = a.batch_indices, &positions = a.positions, &indices = a.kv_indices, &indptr = a.kv_indptr, &last = a.kv_last_page_len;
  const int64_t tokens = positions.size, sequences = last.size;
  if (indptr[0] != 0) value_error(f, "kv_indptr[0] must be zero", int64_t{0}, indptr[0]);
  for (int64_t b = 0; b < sequences; ++b) {
    if (indptr[b + 1] < indptr[b])
      value_error(f, entry("kv_indptr", b + 1) + " must not decrease", "at least " + std::to_string(indptr[b]), indptr[b + 1]);
    if (last[b] < 0 || last[b] > page_size)
      value_error(f, entry("kv_last_page_len", b) + " is out of range", "0 to " + std::to_string(page_size), last[b]);
  }
  if (indptr[sequences] > indices.size)
    value_error(f, "kv_indptr[-1] must be at most kv_indices.shape[0]", "at most " + std::to_string(indices.size), indptr[sequences]);

  std::vector<TokenPlace> places(tokens);
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t b = batch[t], position = positions[t];
    if (b < 0 || b >= sequences) value_error(f, entry("batch_indices", t) + " is out of range", "0 to " + std::to_string(sequences - 1), b);
    const int64_t count = indptr[b + 1] - indptr[b], length = count == 0 ? 0 : (count - 1) * page_size + last[b];
    if (position < 0 || position >= length)
      value_error(f, entry("positions", t) + " must be within the length of its sequence", "0 to " + std::to_string(length - 1), position);
    const int64_t n = indptr[b] + position / page_size, page = indices[n];
    if (page < 0 || page >= pages) value_error(f, entry("kv_indices", n) + " is out of range", "0 to " + std::to_string(pages - 1), page);
    places[t] = {static_cast<int32_t>(page), static_cast<int32_t>(position % page_size)};
  }
  return places;
}

void copy_rows(const attile_tensor& from, const attile_tensor& to, const std::vector<TokenPlace>& places) {
  const int64_t size = to.dtype.bits / 8;
  const size_t bytes = to.shape[2] * size;
  for (size_t t = 0; t < places.size(); ++t)
    std::memcpy(static_cast<char*>(to.data) + (places[t].page * to.strides[0] + places[t].row * to.strides[1]) * size,
                static_cast<const char*>(from.data) + static_cast<int64_t>(t) * from.strides[0] * size, bytes);
}

}  // namespace

void append_paged_mla_kv_cache(const attile_append_paged_mla_kv_cache_params& p, void* stream) {
  const char* f = kFunction;
  const struct {
    const char* name;
    const attile_tensor* t;
    bool index;
  } given[] = {{"append_ckv", p.append_ckv, false}, {"append_kpe", p.append_kpe, false}, {"batch_indices", p.batch_indices, true},
               {"positions", p.positions, true},    {"ckv_cache", p.ckv_cache, false},   {"kpe_cache", p.kpe_cache, false},
               {"kv_indices", p.kv_indices, true},  {"kv_indptr", p.kv_indptr, true},    {"kv_last_page_len", p.kv_last_page_len, true}};
  for (const auto& [name, t, index] : given)
    if (!t) type_error(f, std::string(name) + " is required", "an array", "none");
  check_place(f, "append_ckv", *p.append_ckv);
  for (const auto& [name, t, index] : given) {
    check_device(f, name, *t, "append_ckv", *p.append_ckv, index);
    if (index) check_device(f, name, *t, "batch_indices", *p.batch_indices);
  }
  check_cache("append_ckv", *p.append_ckv, "ckv_cache", *p.ckv_cache, *p.append_ckv);
  check_cache("append_kpe", *p.append_kpe, "kpe_cache", *p.kpe_cache, *p.append_ckv);
  if (dtype_of(p.kpe_cache->dtype) != dtype_of(p.ckv_cache->dtype))
    type_error(f, "kpe_cache.dtype must equal ckv_cache.dtype", name_of(p.ckv_cache->dtype), name_of(p.kpe_cache->dtype));
  for (int32_t d = 0; d < 2; ++d) check_size(f, "kpe_cache", *p.kpe_cache, d, p.ckv_cache->shape[d], axis("ckv_cache", d));
  PagedAppend append = index_arrays(p);
  append.placed = p.batch_indices->device_type == 1;
  std::vector<TokenPlace> places;
  if (append.placed) places = find_places(append, p.ckv_cache->shape[0], p.ckv_cache->shape[1]);
  if (p.append_ckv->device_type == 1) {
    copy_rows(*p.append_ckv, *p.ckv_cache, places);
    copy_rows(*p.append_kpe, *p.kpe_cache, places);
    return;
  }
  append.places = places;
  append.tokens[0] = view_of(*p.append_ckv), append.tokens[1] = view_of(*p.append_kpe);
  append.caches[0] = view_of(*p.ckv_cache), append.caches[1] = view_of(*p.kpe_cache);
  const int32_t device = p.append_ckv->device_id;
  const CudaLibrary& cuda = cuda_library(f, device);
  on_cuda_device(cuda, f, device, [&] {
    if (append.placed && cuda.is_capturing(stream))
      value_error(f, "batch_indices must be on the device of the data while a graph is captured", "cuda:" + std::to_string(device),
                  "an array in host memory");
    cuda.append_paged(append, stream);
  });
}

}  // namespace attile
