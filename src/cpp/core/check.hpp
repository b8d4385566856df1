// Errors: argument, rule, expected, found. Thrown inside the library, turned into a status at the C interface.
#pragma once

#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "attile/attile.h"

namespace attile {

struct Error : std::runtime_error {
  attile_status status;
  Error(attile_status s, const std::string& text) : std::runtime_error(text), status(s) {}
};

inline std::string text_of(const char* s) { return s; }
inline std::string text_of(const std::string& s) { return s; }
inline std::string text_of(double x) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%g", x);
  return buffer;
}
inline std::string text_of(int64_t x) { return std::to_string(x); }
inline std::string text_of(int32_t x) { return std::to_string(x); }

// "(2, 3, 4)": the shape as Python prints it.
inline std::string text_of(const attile_tensor& t) {
  std::string s = "(";
  for (int32_t d = 0; d < t.rank && d < ATTILE_MAX_RANK; ++d) s += (d ? ", " : "") + std::to_string(t.shape[d]);
  return s + (t.rank == 1 ? ",)" : ")");
}

// "flash_attention: key.shape[3] must equal query.shape[3]: expected 128, got 64"
template <class Expected, class Got>
[[noreturn]] void fail(attile_status status, const char* function, const std::string& rule, const Expected& expected, const Got& got) {
  throw Error(status, std::string(function) + ": " + rule + ": expected " + text_of(expected) + ", got " + text_of(got));
}

template <class Expected, class Got>
[[noreturn]] void value_error(const char* function, const std::string& rule, const Expected& expected, const Got& got) {
  fail(ATTILE_VALUE_ERROR, function, rule, expected, got);
}
template <class Expected, class Got>
[[noreturn]] void type_error(const char* function, const std::string& rule, const Expected& expected, const Got& got) {
  fail(ATTILE_TYPE_ERROR, function, rule, expected, got);
}

}  // namespace attile
