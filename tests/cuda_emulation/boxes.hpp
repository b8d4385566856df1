// Boxes of tensors, as TMA copies them: which element goes where.
#pragma once

#include <array>
#include <cstdint>

#include "cuda.h"
#include "emulation.hpp"

namespace emulation {

// A box of a tensor on its way to or from shared memory.
struct Box {
  CUtensorMap map;
  uint32_t shared;
  std::array<int, 5> at;
};

// The row and column of a box's elements, their place in shared memory, and in the tensor (null: outside).
template <class Function>
void for_box(const Box& box, Function function) {
  const CUtensorMap& m = box.map;
  const uint32_t line = m.box[0] * m.size, mask = m.swizzle == CU_TENSOR_MAP_SWIZZLE_128B ? 7 : m.swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 3 : 0;
  if (box.shared % 1024) fail("a box of shared memory that does not begin on 1024 bytes");
  for (uint32_t i = 0; i < m.box[1] * m.box[2]; ++i)
    for (uint32_t column = 0; column < m.box[0]; ++column) {
      const int64_t at[5] = {box.at[0] + int64_t{column}, box.at[1] + int64_t{i % m.box[1]}, box.at[2] + int64_t{i / m.box[1]}, box.at[3], box.at[4]};
      bool inside = true;
      uint64_t address = reinterpret_cast<uint64_t>(m.base);
      for (int d = 0; d < 5; ++d) {
        inside &= at[d] >= 0 && static_cast<uint64_t>(at[d]) < m.dims[d];
        address += static_cast<uint64_t>(at[d]) * m.steps[d];
      }
      const uint32_t place = box.shared + i * line + column * m.size;
      function(shared_at(place ^ (place >> 7 & mask) << 4, m.size), inside ? reinterpret_cast<char*>(address) : nullptr, m.size);
    }
}

}  // namespace emulation
