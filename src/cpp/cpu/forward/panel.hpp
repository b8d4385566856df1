// A panel: kPanel query rows, the lanes of kPanelVectors vectors. Its softmax state, and the keys that its rows see.
#pragma once

#include "cpu/forward/unit.hpp"
#include "cpu/simd/vector.hpp"

namespace attile::ATTILE_ISA {

template <class T>
inline constexpr int kPanel = kPanelVectors * kLanes<T>;

inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// The state of one panel.
template <class T>
struct PanelState {
  T *max, *sum, *out;
};

template <class T>
inline PanelState<T> panel_state(const Unit& u, const BlockState& state, int64_t panel) {
  return {static_cast<T*>(state.max) + panel * kPanel<T>, static_cast<T*>(state.sum) + panel * kPanel<T>,
          static_cast<T*>(state.out) + panel * kPanel<T> * round_up(u.head_dim_v, kChunk)};
}

// The keys that some row sees, [begin, end), and those that every row sees.
struct PanelKeys {
  int64_t begin = INT64_MAX, end = 0, every_begin = 0, every_end = INT64_MAX;
};

inline PanelKeys panel_keys(const QueryRow* rows, int64_t count) {
  PanelKeys keys;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t begin = rows[r].key_begin, end = rows[r].key_end;
    keys.every_begin = begin > keys.every_begin ? begin : keys.every_begin;
    keys.every_end = end < keys.every_end ? end : keys.every_end;
    if (begin >= end) continue;
    keys.begin = begin < keys.begin ? begin : keys.begin;
    keys.end = end > keys.end ? end : keys.end;
  }
  return keys;
}

}  // namespace attile::ATTILE_ISA
