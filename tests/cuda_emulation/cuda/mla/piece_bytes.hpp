// In place of src/cuda/mla/piece_bytes.hpp: so little that small problems have several pieces.
#pragma once

#include <cstdint>

namespace attile::cuda {

inline constexpr int64_t kPieceBytes = 20 << 10;

}  // namespace attile::cuda
