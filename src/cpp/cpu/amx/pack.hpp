// Copies into the layouts of cpu/amx/product.hpp, split into bfloat16 parts on the way: bfloat16 is one part, float16 two, float32
// three. Sources have contiguous rows at any address; nothing outside the given rows and columns is read.
//
//   Q  -> [panel][chunk][part][2][16][16 rows][2]            pairs of dims, chunks of 32 dims
//   K  -> [group][chunk][part][32 keys][32 dims]             groups of 32 keys: rows as they are
//   V  -> [columns / 32][group][part][32 columns][32 keys]   transposed: keys in pairs, words in place
//
// Dims, columns and keys are padded with zeros.
#pragma once

#include "cpu/amx/product.hpp"
#include "cpu/forward/pack.hpp"

namespace attile::ATTILE_ISA {

// 32 elements of a row in parts.
template <int kParts>
struct Chunk {
  Halves part[kParts];
};

inline Vec<float> floats_of(__m256i halves) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)); }
inline Vec<float> low_floats(Halves h) { return floats_of(_mm512_castsi512_si256((__m512i)h)); }
inline Vec<float> high_floats(Halves h) { return floats_of(_mm512_extracti64x4_epi64((__m512i)h, 1)); }

// Rounding may carry a finite number to infinity: it is cut off then. Infinity and NaN have no rest.
template <int kParts>
inline Chunk<kParts> split(Vec<float> low, Vec<float> high) {
  Chunk<kParts> chunk;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    constexpr uint32_t kUpper = 0xFFFF0000u;
    const auto part_of = [](Vec<float> x, Vec<float> rounded) {
      const Vec<float> cut = bit_cast<Vec<float>>(bit_cast<VecN<uint32_t, 16>>(x) & kUpper);
      return ((rounded - rounded == rounded - rounded) | (x != x)) ? rounded : cut;
    };
    Halves rounded = make_halves(low, high);
    Vec<float> a = low_floats(rounded), b = high_floats(rounded);
    if (i == 0 && kParts > 2) {  // a float16 is far from bfloat16's largest
      a = part_of(low, a);
      b = part_of(high, b);
      rounded = make_halves(a, b);
    }
    chunk.part[i] = rounded;
    low -= a;
    high -= b;
    low = low == low ? low : Vec<float>{};
    high = high == high ? high : Vec<float>{};
  }
  return chunk;
}

template <int kParts>
struct PartFormat;
template <>
struct PartFormat<1> {
  using type = Bf16;
};
template <>
struct PartFormat<2> {
  using type = F16;
};
template <>
struct PartFormat<3> {
  using type = F32;
};

// Elements [first, first + 32) of a row of `count`, zeros beyond; a null row is all zeros.
template <int kParts>
inline Chunk<kParts> load_chunk(const char* row, int64_t first, int64_t count) {
  using Format = typename PartFormat<kParts>::type;
  using Storage = typename Format::Storage;
  alignas(64) Storage staged[kTileStep] = {};
  const void* from = row + first * static_cast<int64_t>(sizeof(Storage));
  if (row == nullptr) {
    from = staged;
  } else if (first + kTileStep > count) {
    if (first < count) __builtin_memcpy(staged, from, (count - first) * sizeof(Storage));
    from = staged;
  }
  if constexpr (kParts == 1) {
    return {{load<Halves>(from)}};
  } else {
    return split<kParts>(load_as<float, Format>(from), load_as<float, Format>(static_cast<const char*>(from) + sizeof(Storage) * 16));
  }
}

inline constexpr int kWords = 16;  // pairs of a chunk

template <int kParts>
inline constexpr int64_t kElementBytes = sizeof(typename PartFormat<kParts>::type::Storage);

// Rows of one head lie a page or more apart where heads are neighbours in memory: no prefetcher of the CPU follows them.
template <class RowAt>
inline void prefetch_rows(RowAt row_at, int64_t begin, int64_t end, int64_t bytes) {
  for (int64_t j = begin; j < end; ++j) {
    const char* row = row_at(j);
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
    __builtin_prefetch(row + bytes - 1, 0, 2);
  }
}

inline constexpr int kSides = kTileLanes / kWords;

// Rows row_at(0) to row_at(31) are a panel's: chunk `chunk` of one side of 16 rows.
template <int kParts, class RowAt>
inline void pack_query_tile(RowAt row_at, int64_t chunk, int64_t side, int64_t head_dim, char* to) {
  Vec<float> x[kParts][kWords];
  for (int l = 0; l < kWords; ++l) {
    const Chunk<kParts> elements = load_chunk<kParts>(row_at(side * kWords + l), chunk * kTileStep, head_dim);
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) x[i][l] = bit_cast<Vec<float>>(elements.part[i]);
  }
  to += chunk * kParts * kStepBytes + side * kTileBytes;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    transpose<float>(x[i]);
#pragma GCC unroll 16
    for (int w = 0; w < kWords; ++w) store(to + i * kStepBytes + w * kTileRowBytes, x[i][w]);
  }
}

// A whole panel.
template <int kParts, class RowAt>
inline void pack_query_tiles(RowAt row_at, int64_t head_dim, char* to) {
  for (int64_t chunk = 0; chunk * kTileStep < head_dim; ++chunk)
    for (int64_t side = 0; side < kSides; ++side) pack_query_tile<kParts>(row_at, chunk, side, head_dim, to);
}

inline constexpr int64_t kRowPieces = 4, kPieceRows = kTileStep / kRowPieces;  // of a step

// Rows of piece `piece` of step `step`, zeros from row `keys` on.
template <int kParts, class RowAt>
inline void pack_key_rows(RowAt row_at, int64_t step, int64_t piece, int64_t keys, int64_t head_dim, char* to) {
  const int64_t chunks = (head_dim + kTileStep - 1) / kTileStep;
  to += step * chunks * kParts * kStepBytes;
  for (int64_t l = piece * kPieceRows; l < (piece + 1) * kPieceRows; ++l) {
    const int64_t j = step * kTileStep + l;
    const char* row = j < keys ? row_at(j) : nullptr;
    for (int64_t c = 0; c < chunks; ++c) {
      const Chunk<kParts> chunk = load_chunk<kParts>(row, c * kTileStep, head_dim);
#pragma GCC unroll 4
      for (int i = 0; i < kParts; ++i) store(to + (c * kParts + i) * kStepBytes + l * kTileRowBytes, chunk.part[i]);
    }
  }
}

// All rows, and zeros up to a whole group.
template <int kParts, class RowAt>
inline void pack_key_tiles(RowAt row_at, int64_t keys, int64_t head_dim, char* to) {
  for (int64_t step = 0; step * kTileStep < keys; ++step)
    for (int64_t piece = 0; piece < kRowPieces; ++piece) pack_key_rows<kParts>(row_at, step, piece, keys, head_dim, to);
}

// Interleaving within 128 bits leaves its halves' words at these columns.
inline int64_t column_of(int half, int word) { return 4 * half + 8 * (word / 4) + word % 4; }

// V takes two steps, so that its rows are read whole: words of two keys where the block's tiles will be, then those transposed in place.
// Staged, a block of 32 columns is [half][16 pairs of keys][16 words], the halves being the lower and the upper ones of every 8 columns.
//
// Rows of piece `piece` of group g of a tile of `groups` groups, zeros from row `keys` on.
template <int kParts, class RowAt>
inline void stage_value_rows(RowAt row_at, int64_t g, int64_t piece, int64_t keys, int64_t head_dim_v, char* to, int64_t groups) {
  for (int64_t w = piece * kPieceRows / 2; w < (piece + 1) * kPieceRows / 2; ++w) {
    const int64_t j = g * kTileStep + 2 * w;
    const char *even_row = j < keys ? row_at(j) : nullptr, *odd_row = j + 1 < keys ? row_at(j + 1) : nullptr;
    char* at = to + g * kParts * kStepBytes + w * kTileRowBytes;
    for (int64_t d = 0; d < head_dim_v; d += kTileStep, at += groups * kParts * kStepBytes) {
      const Chunk<kParts> even = load_chunk<kParts>(even_row, d, head_dim_v), odd = load_chunk<kParts>(odd_row, d, head_dim_v);
#pragma GCC unroll 4
      for (int i = 0; i < kParts; ++i) {
        const __m512i a = (__m512i)even.part[i], b = (__m512i)odd.part[i];
        store(at + i * kStepBytes, (Vec<float>)_mm512_unpacklo_epi16(a, b));
        store(at + i * kStepBytes + kTileBytes, (Vec<float>)_mm512_unpackhi_epi16(a, b));
      }
    }
  }
}

template <int kParts>
inline void transpose_values(int64_t g, int64_t block, char* to, int64_t groups) {
  to += (block * groups + g) * kParts * kStepBytes;
  for (int i = 0; i < kParts; ++i, to += kStepBytes) {
    Vec<float> x[2][kWords];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 16
      for (int w = 0; w < kWords; ++w) x[half][w] = load<Vec<float>>(to + half * kTileBytes + w * kTileRowBytes);
      transpose<float>(x[half]);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 16
      for (int w = 0; w < kWords; ++w) store(to + column_of(half, w) * kTileRowBytes, x[half][w]);
    }
  }
}

}  // namespace attile::ATTILE_ISA
