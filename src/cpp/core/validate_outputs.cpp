// merge_states' arguments, and outputs that a caller gives.
#include <algorithm>
#include <cstdlib>

#include "core/tensor_checks.hpp"
#include "core/validate.hpp"

namespace attile {
namespace {

// Strides nest: sorted by size, each steps over all that the smaller ones reach. So no element is written twice.
bool overlaps_itself(const attile_tensor& t) {
  struct Dim { int64_t stride, reach; } dims[ATTILE_MAX_RANK];
  int n = 0;
  for (int32_t d = 0; d < t.rank; ++d) {
    if (t.shape[d] == 0) return false;
    if (t.shape[d] <= 1) continue;
    const Dim dim{std::abs(t.strides[d]), (t.shape[d] - 1) * std::abs(t.strides[d])};
    int place = n++;
    for (; place > 0 && dims[place - 1].stride > dim.stride; --place) dims[place] = dims[place - 1];
    dims[place] = dim;
  }
  int64_t reach = 0;
  for (int i = 0; i < n; ++i) {
    if (dims[i].stride <= reach) return true;
    reach += dims[i].reach;
  }
  return false;
}

}  // namespace

void validate_output(const char* f, const char* name, const attile_tensor& given, const attile_tensor& expected) {
  if (dtype_of(given.dtype) != dtype_of(expected.dtype))
    type_error(f, std::string(name) + ".dtype is wrong", name_of(expected.dtype), name_of(given.dtype));
  if (given.rank != expected.rank || !std::equal(given.shape, given.shape + given.rank, expected.shape))
    value_error(f, std::string(name) + ".shape is wrong", expected, given);
  check_device(f, name, given, "the inputs", expected);
  check_contiguous(f, name, given);
  if (overlaps_itself(given)) value_error(f, std::string(name) + " must not overlap itself", "distinct elements", "strides that repeat elements");
}

MergeProblem validate(const attile_merge_states_params& p) {
  const char* f = "merge_states";
  const struct { const char* name; const attile_tensor* t; } given[] = {
      {"out_a", p.out_a}, {"lse_a", p.lse_a}, {"out_b", p.out_b}, {"lse_b", p.lse_b}};
  for (const auto& [name, t] : given) {
    if (!t) type_error(f, std::string(name) + " is required", "an array", "none");
    if (t == p.out_a) check_place(f, name, *t);
    check_device(f, name, *t, "out_a", *p.out_a);
  }
  check_rank(f, "out_a", *p.out_a, {4});
  check_rank(f, "lse_a", *p.lse_a, {3});
  check_rank(f, "out_b", *p.out_b, {4});
  check_rank(f, "lse_b", *p.lse_b, {3});
  const DType dtype = floating_dtype(f, "out_a", *p.out_a, "float64, float32, float16 or bfloat16", false);
  if (dtype_of(p.out_b->dtype) != dtype) type_error(f, "out_b.dtype must equal out_a.dtype", info(dtype).name, name_of(p.out_b->dtype));
  for (const auto& [name, t] : {std::pair{"lse_a", p.lse_a}, std::pair{"lse_b", p.lse_b}})
    if (dtype_of(t->dtype) != accumulator_of(dtype))
      type_error(f, std::string(name) + ".dtype is wrong", info(accumulator_of(dtype)).name, name_of(t->dtype));
  for (int32_t d = 0; d < 4; ++d) check_size(f, "out_b", *p.out_b, d, p.out_a->shape[d], axis("out_a", d));
  const int32_t lse_axis_of[3] = {0, 2, 1};  // lse [B,H,T] of out [B,T,H,Dv]
  for (const auto& [name, t] : {std::pair{"lse_a", p.lse_a}, std::pair{"lse_b", p.lse_b}})
    for (int32_t d = 0; d < 3; ++d) check_size(f, name, *t, d, p.out_a->shape[lse_axis_of[d]], axis("out_a", lse_axis_of[d]));
  check_contiguous(f, "out_a", *p.out_a);
  check_contiguous(f, "out_b", *p.out_b);
  return {view_of(*p.out_a), lse_view_of(*p.lse_a), view_of(*p.out_b), lse_view_of(*p.lse_b)};
}

}  // namespace attile
