// Which output tile a block computes next: at a fixed stride, or drawn from a shared counter. Only the producer thread asks; it hands the decoded
// tile to the consumers through a ring.
#pragma once

#include <cstdint>

namespace attile::cuda::sm90 {

struct Tile {
  int m, head, batch;
};

// Full attention: query tiles fastest, so the blocks at work share few heads' keys in L2.
// Causal: longest tiles first, heads fastest, in sections of as many heads as fit in L2. A bias: likewise, so that the heads, or the
// batches, that share it read it at about the same time.
struct TileOrder {
  int m_tiles, heads, batches, section_heads;
  bool sections, batches_fastest;

  __device__ int count() const { return m_tiles * heads * batches; }

  __device__ Tile operator[](int i) const {
    int m, bh;
    if (sections) {
      const int section = i / (section_heads * m_tiles);
      const int first = section * section_heads;
      const int width = min(section_heads, heads * batches - first);
      const int rest = i - first * m_tiles;
      m = m_tiles - 1 - rest / width;
      bh = first + rest % width;
    } else {
      m = i % m_tiles;
      bh = i / m_tiles;
    }
    if (batches_fastest) return {m, bh / batches, bh % batches};
    return {m, bh % heads, bh / heads};
  }
};

// The lengths of the sequences of queries or keys: all `rows`, or of a padded or packed array. Numbers that break their contract are clamped.
struct Lengths {
  const char *cu, *lens;  // begins, or lengths; both null: dense
  int64_t stride;         // in bytes
  int rows, most;         // of the array; in a sequence
  bool wide, packed;

  __device__ int64_t number(const char* from, int i) const {
    const char* at = from + i * stride;
    return wide ? __ldg(reinterpret_cast<const int64_t*>(at)) : __ldg(reinterpret_cast<const int*>(at));
  }
  __device__ int clamped(int64_t x) const { return static_cast<int>(max(int64_t{0}, min(x, int64_t{rows}))); }
  __device__ int begin(int i) const { return packed ? clamped(number(cu, i)) : 0; }
  __device__ int length(int i) const {
    const int n = packed ? max(0, begin(i + 1) - begin(i)) : cu ? clamped(number(cu, i + 1) - number(cu, i)) : lens ? clamped(number(lens, i)) : rows;
    return min(most, n);
  }
};

// Packed sequences: a sequence's tiles from its last to its first, all heads of each; after the last, the rows that belong to none. Indices
// must be asked for in rising order: the search for the sequence goes on where it stood.
struct PackedOrder {
  int sequence = 0, tiles_before = 0;

  // False: no more. row0, length: of the sequence.
  __device__ bool find(const Lengths& q, int sequences, int heads, int tile_m, int i, Tile& t, int& row0, int& length) {
    const int tile = i / heads;
    for (; sequence <= sequences; ++sequence) {
      row0 = q.begin(sequence);
      length = sequence < sequences ? q.length(sequence) : q.rows - row0;
      const int tiles = (length + tile_m - 1) / tile_m;
      if (tile < tiles_before + tiles) {
        t = {tiles - 1 - (tile - tiles_before), i % heads, sequence};
        return true;
      }
      tiles_before += tiles;
    }
    return false;
  }
};

// E4m3's transposed values: where those of packed sequence `i` begin, whose first row is `row0` of the array. Each has whole 128s of its own, and what
// lies past the last sequence (row0: of the array's end) is zero.
inline constexpr int kTransposedKeys = 128;
__device__ inline int transposed_begin(int row0, int i) { return (row0 / kTransposedKeys + i) * kTransposedKeys; }

// Where rows lie in a tensor map {dims, rows, a, b}: row r of the sequence is row first + r of (a, b). As it is: (a, b) = (head, batch), and rows
// end with the array. Ending: rows end with the sequence, so that the copies zero-fill (or do not write) what lies beyond. For that the map
// has kFar rows, of which a sequence has the last; dimension a takes the kFar rows off again (its step is 2^35 bytes less a row, so kFar steps are
// -kFar rows modulo 2^64), and b moves in steps that divide every stride. The map begins where the array does: one that
// begins kFar rows before would say the same, but a copy that lies wholly outside faults when the map's own start is not mapped.
inline constexpr int kFar = 1 << 30;
struct RowOrigin {
  int first, a, b;
};
struct EndingSteps {
  int row, head, batch;  // in steps of b; row 0: the map is as it is
};
__device__ inline RowOrigin origin(const EndingSteps& s, int row0, int length, int head, int batch) {
  if (s.row == 0) return {row0, head, batch};
  return {kFar - length, kFar, (row0 + length) * s.row + head * s.head + batch * s.batch};
}

}  // namespace attile::cuda::sm90
