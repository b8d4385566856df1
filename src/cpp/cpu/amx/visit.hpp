// How a tile of keys is walked: a visit is a panel of rows and the keys of the tile that it sees, done in groups of 64 keys.
#pragma once

#include "cpu/amx/product.hpp"
#include "cpu/forward/unit.hpp"

namespace attile::ATTILE_ISA {

inline constexpr int64_t kGroup = kTileGroup, kGroupSteps = kGroup / kTileStep;

// Keys [first, first + keys) of the tile, first a multiple of kTileStep, in steps of that many; `key`, the first of them in the sequence.
struct Visit {
  int64_t panel, first, key, keys, steps, groups;
  const QueryRow* rows;
  int turn;           // 0 and 1 by turns
  bool begins, ends;  // the panel's first: O is written, not added to; its last
};

// Up to whole steps of keys.
struct Group {
  int64_t first, key, keys, steps;
};

inline Group group_of(const Visit& visit, int64_t g) {
  const int64_t rest = visit.keys - g * kGroup, keys = rest < kGroup ? rest : kGroup;
  return {visit.first + g * kGroup, visit.key + g * kGroup, keys, (keys + kTileStep - 1) / kTileStep};
}

}  // namespace attile::ATTILE_ISA
