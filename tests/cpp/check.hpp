// The smallest test frame: TEST(name) { CHECK(a < b); CHECK_EQ(a, b); } and one TEST_MAIN(). A failed check prints its values and
// the test goes on; the executable's status is the verdict. `test_x NAME` runs the tests whose name contains NAME.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

inline std::atomic<int> failures{0};

// Any thread may fail.
inline void fail(const char* file, int line, const std::string& text) {
  ++failures;
  std::ostringstream message;
  message << file << ':' << line << ": " << text << '\n';
  std::cerr << message.str();
}

template <class A, class B>
void equal(const char* file, int line, const char* text, const A& a, const B& b) {
  if (a == b) return;
  std::ostringstream message;
  message << text << ": " << a << " and " << b;
  fail(file, line, message.str());
}

inline int run_all(int argc, char** argv) {
  int ran = 0;
  for (const Test& test : tests()) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    const int before = failures;
    const auto start = std::chrono::steady_clock::now();
    test.run();
    const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    std::printf("%-6s %9.2f ms  %s\n", failures == before ? "ok" : "FAILED", ms, test.name);
    std::fflush(stdout);
    ++ran;
  }
  std::printf("%d tests, %d failed checks\n", ran, failures.load());
  return failures == 0 && ran > 0 ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                                   \
  static void name();                                                \
  static const check::Registration name##_registration{#name, name}; \
  static void name()
#define CHECK(condition) ((condition) ? void() : check::fail(__FILE__, __LINE__, #condition))
#define CHECK_EQ(a, b) check::equal(__FILE__, __LINE__, #a " == " #b, (a), (b))
#define TEST_MAIN() \
  int main(int argc, char** argv) { return check::run_all(argc, argv); }
