// MLA's product on tiles: C = A W as in mla/projection.hpp, with the steps of the attention products (amx/product.hpp): 32 rows of A
// by 32 columns of W in four tiles, 32 of the depth a step, elements wider than bfloat16 in parts. A lies as keys do, W as queries.
//
//   for panels of 32 columns, for slices of the depth of 16 KB of W:  for groups of 32 rows:  C (+)= A W
//
// so that a slice of W stays in L1 while A streams from L2, 32 bytes a cycle: of whole depths neither operand would stay. In the last
// slice the block before is rounded and written, a few rows a step, so that the dots do not wait for it.
// Cost: at rank 512 the dots of a key's 128 + 128 elements take 256 cycles.
#pragma once

#include "cpu/amx/pack.hpp"
#include "cpu/mla/columns.hpp"

namespace attile::ATTILE_ISA {

static_assert(kPanel<float> == kTileLanes);

// [panel of 32 columns][chunk of 32 along the depth][part][16 pairs][32 columns][2]. Rows of W lie pages apart, so all columns of a pair
// of rows are taken at once.
template <int kParts>
void pack_weight_tiles(const WeightSlice& w, void* packed) {
  char* to = static_cast<char*>(packed);
  const int64_t chunks = (w.depth + kTileStep - 1) / kTileStep, panel_bytes = chunks * kParts * kStepBytes;
  if (w.column_stride != element_bytes(w.dtype)) {
    for (int64_t column = 0; column < w.columns; column += kTileLanes, to += panel_bytes)
      pack_query_tiles<kParts>([&](int64_t l) { return column + l < w.columns ? w.data + (column + l) * w.column_stride : nullptr; },
                               w.depth, to);
    return;
  }
  const auto words = [](Halves h, int half) {
    return _mm512_cvtepu16_epi32(half ? _mm512_extracti64x4_epi64((__m512i)h, 1) : _mm512_castsi512_si256((__m512i)h));
  };
  for (int64_t pair = 0; pair < chunks * kWords; ++pair) {
    const auto row = [&](int64_t d) { return d < w.depth ? w.data + d * w.depth_stride : nullptr; };
    const char *even_row = row(2 * pair), *odd_row = row(2 * pair + 1);
    char* at = to + pair / kWords * kParts * kStepBytes + pair % kWords * kTileRowBytes;
    for (int64_t column = 0; column < w.columns; column += kTileLanes, at += panel_bytes) {
      const Chunk<kParts> even = load_chunk<kParts>(even_row, column, w.columns), odd = load_chunk<kParts>(odd_row, column, w.columns);
#pragma GCC unroll 4
      for (int i = 0; i < kParts; ++i) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half)
          store(at + i * kStepBytes + half * kTileBytes,
                _mm512_or_si512(words(even.part[i], half), _mm512_slli_epi32(words(odd.part[i], half), 16)));
      }
    }
  }
}

template <int kParts>
void pack_row_tiles(const ProjectionRows& a, int64_t depth, DType, void* to) {
  pack_key_tiles<kParts>([&](int64_t j) { return a.data + j * a.stride; }, a.count, depth, static_cast<char*>(to));
}

// A block of C, 32 x 32, that is written while the next is computed.
template <class Format>
struct BlockWriter {
  const float* c = nullptr;
  int64_t rows = 0, columns = 0, stride = 0;
  char* to = nullptr;

  inline __attribute__((always_inline)) void advance(int64_t count) {
    count = count < rows ? count : rows;
    if (__is_same(Format, Bf16) && columns == kTileLanes) {
      for (int64_t j = 0; j < count; ++j)
        store(to + j * stride, make_halves(load<Vec<float>>(c + j * kTileLanes), load<Vec<float>>(c + j * kTileLanes + 16)));
    } else {
      write_columns<float, Format>(c, count, columns, to, stride);
    }
    c += count * kTileLanes;
    to += count * stride;
    rows -= count;
  }
};

// One group of rows, one panel, one slice of the depth; the first slice makes C, the others add. Every product of parts: a small sum of
// large terms would show the missing one.
template <int kParts, class Between>
inline __attribute__((always_inline)) void project_block(const char* a, const char* w, int64_t chunks, bool first, bool half, float* c,
                                                         Between between) {
  if (half) {
    first ? tile_product<kParts, true, 1, false>(a, w, chunks, c, between) : tile_product<kParts, true, 1, true>(a, w, chunks, c, between);
  } else {
    first ? tile_product<kParts, true, 2, false>(a, w, chunks, c, between) : tile_product<kParts, true, 2, true>(a, w, chunks, c, between);
  }
}

// scratch: [rows, up to groups][32]
template <int kParts>
void project_tiles_within(const void* a, int64_t rows, const void* w, int64_t depth, int64_t columns, DType, char* to, int64_t stride,
                          void* scratch) {
  using Format = typename PartFormat<kParts>::type;
  constexpr int64_t kSize = sizeof(typename Format::Storage), kSlice = 8 / kParts;
  const int64_t chunks = (depth + kTileStep - 1) / kTileStep;
  float* c = static_cast<float*>(scratch);
  BlockWriter<Format> writer;
  for (int64_t column = 0; column < columns; column += kTileLanes) {
    const char* panel = static_cast<const char*>(w) + column / kTileLanes * chunks * kParts * kStepBytes;
    const int64_t width = columns - column < kTileLanes ? columns - column : kTileLanes;
    for (int64_t chunk = 0; chunk < chunks; chunk += kSlice) {
      const int64_t here = chunks - chunk < kSlice ? chunks - chunk : kSlice, share = (kTileStep + here - 1) / here;
      const bool last = chunk + here == chunks;
      for (int64_t row = 0; row < rows; row += kTileStep) {
        const char* group = static_cast<const char*>(a) + (row / kTileStep * chunks + chunk) * kParts * kStepBytes;
        float* block = c + row * kTileLanes;
        const auto between = [&]() __attribute__((always_inline)) { writer.advance(share); };
        project_block<kParts>(group, panel + chunk * kParts * kStepBytes, here, chunk == 0, rows - row <= kTileRows, block, between);
        writer.advance(kTileStep);
        if (last) writer = {block, rows - row < kTileStep ? rows - row : kTileStep, width, stride, to + row * stride + column * kSize};
      }
    }
  }
  writer.advance(kTileStep);
}

template <int kParts>
void project_tiles(const void* a, int64_t rows, const void* w, int64_t depth, int64_t columns, DType dtype, char* to, int64_t stride,
                   void* scratch) {
  const TileScope tiles;
  project_tiles_within<kParts>(a, rows, w, depth, columns, dtype, to, stride, scratch);
}

extern const ForwardIsa kForward[3];

template <int kParts>
constexpr MlaIsa tile_mla(const ForwardIsa& forward) {
  return {&forward,
          1,
          {pack_weight_tiles<kParts>, nullptr},
          {pack_row_tiles<kParts>, nullptr},
          {project_tiles<kParts>, nullptr},
          {project_tiles_within<kParts>, nullptr}};
}

// bfloat16, float16.
extern const MlaIsa kMla[2];
const MlaIsa kMla[2] = {tile_mla<1>(kForward[0]), tile_mla<2>(kForward[1])};

}  // namespace attile::ATTILE_ISA
