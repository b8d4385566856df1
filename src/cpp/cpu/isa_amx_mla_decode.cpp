// MLA decoding for this instruction set. Its vectors come first: everything after them is compiled into their namespace.
// clang-format off
#include "cpu/simd/amx.hpp"
#include "cpu/mla_decode/tile_attend.hpp"
// clang-format on
