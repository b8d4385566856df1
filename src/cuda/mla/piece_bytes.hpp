// What a piece (pieces.hpp) may store: rows and heads enough for several waves of blocks.
#pragma once

#include <cstdint>

namespace attile::cuda {

inline constexpr int64_t kPieceBytes = int64_t{96} << 20;

}  // namespace attile::cuda
