// What functions of gradients are given besides the arguments of their forward call: its results, out and lse, and their gradients, which have the
// shapes that the forward call gave them.
#pragma once

#include <initializer_list>
#include <string>

#include "core/backward_problem.hpp"
#include "core/tensor_checks.hpp"

namespace attile {

struct ForwardResults {
  const attile_tensor *dout, *out, *lse, *dlse;  // dlse may be null
};

// An array of the rank, dtype and shape of out or of lse.
inline void check_result(const char* function, const char* name, const attile_tensor* t, const attile_tensor& query, DType dtype,
                         std::initializer_list<int64_t> shape) {
  if (!t) return;
  check_device(function, name, *t, "query", query);
  check_rank(function, name, *t, {static_cast<int32_t>(shape.size())});
  if (dtype_of(t->dtype) != dtype) type_error(function, std::string(name) + ".dtype is wrong", info(dtype).name, name_of(t->dtype));
  attile_tensor expected{};
  for (const int64_t extent : shape) expected.shape[expected.rank++] = extent;
  for (int32_t d = 0; d < expected.rank; ++d)
    if (t->shape[d] != expected.shape[d]) value_error(function, std::string(name) + ".shape is wrong", expected, *t);
}

// Into a problem that is the valid forward call, whose query is [B, Tq, Hq, D] or [Tq, Hq, D].
inline void add_results(BackwardProblem& problem, const attile_tensor& query, const ForwardResults& given) {
  const char* f = problem.function;
  const int64_t* q = query.shape;
  for (const auto& [name, t] : {std::pair{"dout", given.dout}, std::pair{"out", given.out}}) {
    if (query.rank == 4)
      check_result(f, name, t, query, problem.dtype, {q[0], q[1], problem.heads_q, problem.head_dim_v});
    else
      check_result(f, name, t, query, problem.dtype, {q[0], problem.heads_q, problem.head_dim_v});
    check_contiguous(f, name, *t);
  }
  for (const auto& [name, t] : {std::pair{"lse", given.lse}, std::pair{"dlse", given.dlse}}) {
    if (query.rank == 4)
      check_result(f, name, t, query, accumulator_of(problem.dtype), {q[0], problem.heads_q, q[1]});
    else
      check_result(f, name, t, query, accumulator_of(problem.dtype), {problem.heads_q, q[0]});
  }
  problem.out = view_of(*given.out);
  problem.lse = lse_view_of(*given.lse);
  problem.dout = view_of(*given.dout);
  if (given.dlse) problem.dlse = lse_view_of(*given.dlse);
}

}  // namespace attile
