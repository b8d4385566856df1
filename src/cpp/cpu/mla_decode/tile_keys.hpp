// A block of keys for tiles: groups of 16 rows, each an A operand as it lies in the cache. Rows that do not lie at one stride (small
// pages), or that are no whole number of chunks of 32 dims, are copied to scratch, padded with zeros; keys beyond the last are one row
// of zeros at stride 0.
#pragma once

#include "cpu/amx/tiles.hpp"
#include "cpu/forward/panel.hpp"
#include "cpu/mla_decode/prefetch.hpp"

namespace attile::ATTILE_ISA {

inline constexpr int64_t kGroupKeys = kTileRows, kUnitKeys = 64;  // keys of an A tile; a block is a multiple of the latter
inline constexpr int64_t kChunkBytes = kTileRowBytes;             // 32 dims

struct KeyGroup {
  const char *ckv, *kpe;
  int64_t ckv_stride, kpe_stride;
};

// Bytes of a row of the latent and of the rope keys, as they are, and padded to the 64 columns that are interleaved and to chunks.
struct RowBytes {
  int64_t ckv, kpe, ckv_padded, kpe_padded;

  explicit RowBytes(const MlaDecodeShape& s)
      : ckv(s.latent * 2),
        kpe(s.rope * s.rope_heads * 2),
        ckv_padded(round_up(ckv, 2 * kChunkBytes)),
        kpe_padded(round_up(kpe, kChunkBytes)) {}
  int64_t padded() const { return ckv_padded + kpe_padded; }
};

// Sets the groups of keys [begin, end), whose rows are at rows[0, end - begin); rows of padded keys become zeros.
class KeyBlock {
 public:
  KeyBlock(const MlaDecodeUnit& unit, KeyGroup* groups, char* staged, char* zeros)
      : m_(unit), bytes_(unit.shape), groups_(groups), staged_(staged), zeros_(zeros) {
    whole_ = bytes_.ckv == bytes_.ckv_padded && bytes_.kpe == bytes_.kpe_padded &&
             (unit.shape.rope_heads == 1 || unit.kpe_head == unit.shape.rope * 2);
  }

  const KeyGroup* groups() const { return groups_; }

  void set(KeyRow* rows, int64_t count) const {
    for (int64_t j = count; j < round_up(count, kUnitKeys); ++j) rows[j] = {zeros_, zeros_};
    for (int64_t first = 0; first < round_up(count, kUnitKeys); first += kGroupKeys) {
      KeyGroup& group = groups_[first / kGroupKeys];
      if (first >= count) {
        group = {zeros_, zeros_, 0, 0};
      } else if (!whole_ || first + kGroupKeys > count || !even(rows + first, group)) {
        stage(rows + first, count - first < kGroupKeys ? count - first : kGroupKeys, first, group);
      }
    }
  }

 private:
  const MlaDecodeUnit& m_;
  RowBytes bytes_;
  KeyGroup* groups_;
  char *staged_, *zeros_;
  bool whole_;

  // Whether 16 rows lie at one stride.
  bool even(const KeyRow* rows, KeyGroup& group) const {
    group = {rows[0].ckv, rows[0].kpe, rows[1].ckv - rows[0].ckv, rows[1].kpe - rows[0].kpe};
    if (in_order(m_)) return true;
    bool same = true;
    for (int64_t j = 1; j < kGroupKeys; ++j)
      same &= (rows[j].ckv - rows[j - 1].ckv == group.ckv_stride) & (rows[j].kpe - rows[j - 1].kpe == group.kpe_stride);
    return same;
  }

  void stage(KeyRow* rows, int64_t count, int64_t first, KeyGroup& group) const {
    const int64_t row = bytes_.padded(), head = m_.shape.rope * 2;
    char* to = staged_ + first * row;
    group = {to, to + bytes_.ckv_padded, row, row};
    for (int64_t j = 0; j < kGroupKeys; ++j, to += row) {
      if (j >= count) {
        __builtin_memset(to, 0, row);
        continue;
      }
      __builtin_memset(to + bytes_.ckv, 0, bytes_.ckv_padded - bytes_.ckv);
      __builtin_memcpy(to, rows[j].ckv, bytes_.ckv);
      rows[j].ckv = to;
      if (bytes_.kpe == 0) continue;
      char* kpe = to + bytes_.ckv_padded;
      for (int64_t h = 0; h < m_.shape.rope_heads; ++h) __builtin_memcpy(kpe + h * head, rows[j].kpe + h * m_.kpe_head, head);
      __builtin_memset(kpe + bytes_.kpe, 0, bytes_.kpe_padded - bytes_.kpe);
    }
  }
};

}  // namespace attile::ATTILE_ISA
