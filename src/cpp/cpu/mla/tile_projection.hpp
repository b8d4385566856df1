// MLA's product on tiles: C = A W as in mla/projection.hpp, with the steps of the attention products (amx/product.hpp): 32 rows of A
// by 32 columns of W in four tiles, 32 of the depth a step, elements wider than bfloat16 in parts. A lies as keys do, W as queries.
// While a block is computed the one before is rounded and written, a few rows a step, so that the dots do not wait for it.
// Cost: at rank 512 the dots of a key's 128 + 128 elements take 256 cycles; both operands come from L2, 4 KB in 64 cycles.
#pragma once

#include "cpu/amx/pack.hpp"
#include "cpu/mla/columns.hpp"

namespace attile::ATTILE_ISA {

static_assert(kPanel<float> == kTileLanes);

// [panel of 32 columns][chunk of 32 along the depth][part][16 pairs][32 columns][2]
template <int kParts>
void pack_weight_tiles(const WeightSlice& w, void* packed) {
  char* to = static_cast<char*>(packed);
  const int64_t chunks = (w.depth + kTileStep - 1) / kTileStep;
  for (int64_t column = 0; column < w.columns; column += kTileLanes, to += chunks * kParts * kStepBytes) {
    if (w.column_stride != static_cast<int64_t>(size_of(w.dtype))) {
      pack_query_tiles<kParts>([&](int64_t l) { return column + l < w.columns ? w.data + (column + l) * w.column_stride : nullptr; }, w.depth, to);
      continue;
    }
    const auto row = [&](int64_t d) { return load_chunk<kParts>(d < w.depth ? w.data + d * w.depth_stride : nullptr, column, w.columns); };
    for (int64_t pair = 0; pair < chunks * kWords; ++pair) {
      const Chunk<kParts> even = row(2 * pair), odd = row(2 * pair + 1);
      char* at = to + pair / kWords * kParts * kStepBytes + pair % kWords * kLaneRowBytes;
#pragma GCC unroll 4
      for (int i = 0; i < kParts; ++i) {
        const auto words = [](Halves h, int half) {
          return _mm512_cvtepu16_epi32(half ? _mm512_extracti64x4_epi64((__m512i)h, 1) : _mm512_castsi512_si256((__m512i)h));
        };
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half)
          store(at + i * kStepBytes + half * kTileRowBytes,
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
    write_columns<float, Format>(c, count, columns, to, stride);
    c += count * kTileLanes;
    to += count * stride;
    rows -= count;
  }
};

template <int kParts>
void project_tiles_within(const void* a, int64_t rows, const void* w, int64_t depth, int64_t columns, DType, char* to, int64_t stride, void* scratch) {
  using Format = typename PartFormat<kParts>::type;
  constexpr int64_t kSize = sizeof(typename Format::Storage);
  const int64_t chunks = (depth + kTileStep - 1) / kTileStep, share = (kTileStep + chunks - 1) / chunks;
  float* c[2] = {static_cast<float*>(scratch), static_cast<float*>(scratch) + kTileStep * kTileLanes};
  BlockWriter<Format> writer;
  int turn = 0;
  for (int64_t column = 0; column < columns; column += kTileLanes) {
    const char* panel = static_cast<const char*>(w) + column / kTileLanes * chunks * kParts * kStepBytes;
    for (int64_t row = 0; row < rows; row += kTileStep) {
      const char* group = static_cast<const char*>(a) + row / kTileStep * chunks * kParts * kStepBytes;
      const auto between = [&]() __attribute__((always_inline)) { writer.advance(share); };
      if (rows - row > kTileRows) {
        tile_product<kParts, false, 2, false>(group, panel, chunks, c[turn], between);
      } else {
        tile_product<kParts, false, 1, false>(group, panel, chunks, c[turn], between);
      }
      writer = {c[turn], rows - row < kTileStep ? rows - row : kTileStep, columns - column < kTileLanes ? columns - column : kTileLanes, stride,
                to + row * stride + column * kSize};
      turn = 1 - turn;
    }
  }
  writer.advance(kTileStep);
}

template <int kParts>
void project_tiles(const void* a, int64_t rows, const void* w, int64_t depth, int64_t columns, DType dtype, char* to, int64_t stride, void* scratch) {
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

// bfloat16, float16, float32.
extern const MlaIsa kMla[3];
const MlaIsa kMla[3] = {tile_mla<1>(kForward[0]), tile_mla<2>(kForward[1]), tile_mla<3>(kForward[2])};

}  // namespace attile::ATTILE_ISA
