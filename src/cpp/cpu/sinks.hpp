// The sinks of a query head as a row begins with them: maximum and sum in base 2.
#pragma once

#include <cmath>
#include <limits>

#include "core/problem.hpp"
#include "cpu/forward/unit.hpp"
#include "cpu/scalars.hpp"

namespace attile {

// The maximum as the accumulator holds it, and the sum relative to that; -inf and 0 without sinks.
inline void read_sinks(const AttentionProblem& p, int64_t h, QueryRow& row) {
  const double log2e = 1.4426950408889634;
  const int64_t n = p.sinks.shape[3];
  double top = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double x = read_floating(p.sinks.dtype, p.sinks.at(0, 0, h, i)) * log2e;
    top = x > top ? x : top;
  }
  if (p.dtype != DType::f64) top = static_cast<float>(top);
  const double base = std::isinf(top) && top < 0 ? 0 : top;
  for (int64_t i = 0; i < n; ++i) sum += std::exp2(read_floating(p.sinks.dtype, p.sinks.at(0, 0, h, i)) * log2e - base);
  row.sink_max = top;
  row.sink_sum = sum;
}

}  // namespace attile
