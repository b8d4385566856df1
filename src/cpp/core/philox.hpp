// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC11), and the dropout mask made of
// it. One counter serves queries i, i + 8 and keys j, j + 1 (j even), so that a bit depends on the position alone and not on
// the tile, the device or the direction.
#pragma once

#include <array>
#include <cstdint>

namespace attile {

using PhiloxBlock = std::array<uint32_t, 4>;

constexpr PhiloxBlock philox4x32_10(PhiloxBlock counter, uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ k0, static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

struct Dropout {
  uint64_t seed = 0;
  uint32_t threshold = 0;  // floor(p * 2^32): kept iff word >= threshold
  double scale = 1;        // 1 / (1 - p)
  int32_t first_sequence = 0, first_head = 0;  // of a problem that is a part of one

  static constexpr PhiloxBlock counter(int64_t b, int64_t h, int64_t i, int64_t j) {
    return {static_cast<uint32_t>(j >> 1), static_cast<uint32_t>(((i >> 4) << 3) | (i & 7)), static_cast<uint32_t>(h),
            static_cast<uint32_t>(b)};
  }
  static constexpr int word(int64_t i, int64_t j) { return static_cast<int>(2 * ((i >> 3) & 1) + (j & 1)); }
  constexpr bool keep(int64_t b, int64_t h, int64_t i, int64_t j) const {
    return philox4x32_10(counter(b, h, i, j), seed)[word(i, j)] >= threshold;
  }
};

}  // namespace attile
