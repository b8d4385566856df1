// Decoding for this instruction set. Its vectors come first: everything after them is compiled into their namespace.
// clang-format off
#include "cpu/simd/portable.hpp"
#include "cpu/decode/attend.hpp"
// clang-format on
