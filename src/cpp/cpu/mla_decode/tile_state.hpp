// O of a block of rows as the tiles leave it, parts of the key range as one, and O as rows of out:
//
//   O[panel][32 columns][16 rows of the panel][half]    tiles of 16 rows by 16 columns; of a panel of 16 rows alone no second 16 rows
//   m = max m_i;   l = sum_i 2^(m_i - m) l_i;   O = sum_i 2^(m_i - m) O_i, in the order of the parts;   out = O / l
//
// A row of a tile is a row of out, so nothing is transposed; two shuffles put the columns that interleaving within 128 bits has permuted
// in order. A part is half of what [column][32 rows] takes for 16 rows. Each part is read once, a tile of all of them abreast: lines that
// another core computed, or that have left the caches, are waited for together.
#pragma once

#include "cpu/amx/product.hpp"
#include "cpu/forward/state.hpp"
#include "cpu/mla_decode/unit.hpp"

namespace attile::ATTILE_ISA {

inline constexpr int kTileFloats = kTileBytes / 4;

class TileState {
 public:
  TileState(int64_t rows, int64_t latent)
      : padded_(round_up(rows, kTileRows)), value_tiles_(round_up(latent, kStateColumns) / kTileRowFloats) {}

  int64_t panels() const { return (padded_ + kTileLanes - 1) / kTileLanes; }
  // How many times 16 rows a panel has.
  int64_t halves(int64_t panel) const { return padded_ - panel * kTileLanes >= kTileLanes ? 2 : 1; }
  int64_t panel(int64_t panel) const { return panel * value_tiles_ * 2 * kTileFloats; }
  int64_t panel_bytes(int64_t panel) const { return value_tiles_ * halves(panel) * kTileBytes; }
  // The first of two tiles of 32 columns.
  int64_t tiles(int64_t first_row, int64_t column) const {
    const int64_t p = first_row / kTileLanes, half = first_row / kTileRows % 2;
    return panel(p) + (column / kTileStep * halves(p) + half) * 2 * kTileFloats;
  }

 private:
  int64_t padded_, value_tiles_;
};

// Columns [d, d + 32) of rows [first, first + 16) of out, as far as there are any, from two tiles of O.
inline void write_tiles(const Unit& u, int64_t first, int64_t d, const float* tiles, const float* factor) {
  const int64_t here = u.count - first < kTileRows ? u.count - first : kTileRows;
  for (int64_t r = 0; r < here; ++r) {
    const Vec<float> low = load<Vec<float>>(tiles + r * 16) * factor[r], high = load<Vec<float>>(tiles + kTileFloats + r * 16) * factor[r];
    const Vec<float> columns[2] = {
        __builtin_shufflevector(low, high, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23),
        __builtin_shufflevector(low, high, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31),
    };
    for (int half = 0; half < 2; ++half) {
      const int64_t begin = d + half * 16, count = u.head_dim_v - begin;
      char* to = u.rows[first + r].out + begin * 2;
      if (count >= 16) {
        store_as<float, Bf16>(to, columns[half]);
      } else if (count > 0) {
        alignas(64) Bf16::Storage staged[16];
        store_as<float, Bf16>(staged, columns[half]);
        __builtin_memcpy(to, staged, count * 2);
      }
    }
  }
}

inline void write_lse(const Unit& u, int64_t first, const float* max, const float* sum) {
  for (int64_t r = 0; r < kTileRows && first + r < u.count; ++r)
    if (float* lse = reinterpret_cast<float*>(u.rows[first + r].lse))
      store(lse, static_cast<float>(static_cast<double>(max[r]) * kLn2<double> + __builtin_log(static_cast<double>(sum[r]))));
}

// out and lse of a block whose keys were not parted; O is at `o`.
inline void write_block(const Unit& u, const float* o) {
  const TileState state(u.count, u.head_dim_v);
  for (int64_t first = 0; first < u.count; first += kTileRows) {
    const float *max = static_cast<float*>(u.state.max) + first, *sum = static_cast<float*>(u.state.sum) + first;
    for (int64_t r = first; r < first + kTileRows && r < u.count; ++r) prefetch_row(u, u.rows[r].out);
    alignas(64) float factor[kTileRows];
    store(factor, out_factor<float>(load<Vec<float>>(sum)));
    for (int64_t d = 0; d < u.head_dim_v; d += kTileStep) write_tiles(u, first, d, o + state.tiles(first, d), factor);
    write_lse(u, first, max, sum);
  }
}

// Columns [begin, begin + u.head_dim_v) of parts that have `latent` of them; rows of `u` are those of the columns alone.
inline void join_tiles(const Unit& u, const BlockState* parts, int64_t count, int64_t begin, int64_t latent) {
  constexpr int64_t kMostParts = 1024;
  const TileState state(u.count, latent);
  for (int64_t first = 0; first < u.count; first += kTileRows) {
    for (int64_t r = first; r < first + kTileRows && r < u.count; ++r) prefetch_row(u, u.rows[r].out);
    const auto max_of = [&](int64_t i) { return load<Vec<float>>(static_cast<const float*>(parts[i].max) + first); };
    Vec<float> top = max_of(0), total{};
    for (int64_t i = 1; i < count; ++i) top = max(top, max_of(i));
    const Vec<float> base = top == -kInfinity<float> ? Vec<float>{} : top;
    alignas(64) float weight[kMostParts][kTileRows], factor[kTileRows], most[kTileRows], sum[kTileRows];
    for (int64_t i = 0; i < count; ++i) {
      const Vec<float> w = exp2<float>(max_of(i) - base);
      store(weight[i], w);
      total += load<Vec<float>>(static_cast<const float*>(parts[i].sum) + first) * w;
    }
    store(factor, out_factor<float>(total));
    store(most, top);
    store(sum, total);
    for (int64_t d = 0; d < u.head_dim_v; d += kTileStep) {
      alignas(64) float joined[2 * kTileFloats];
      for (int half = 0; half < 2; ++half) {
        Vec<float> x[kTileRows] = {};
        for (int64_t i = 0; i < count; ++i) {
          const float* from = static_cast<const float*>(parts[i].out) + state.tiles(first, begin + d) + half * kTileFloats;
#pragma GCC unroll 16
          for (int r = 0; r < kTileRows; ++r) x[r] = fma(load<Vec<float>>(from + r * 16), broadcast<float>(weight[i][r]), x[r]);
        }
#pragma GCC unroll 16
        for (int r = 0; r < kTileRows; ++r) store(joined + half * kTileFloats + r * 16, x[r]);
      }
      write_tiles(u, first, d, joined, factor);
    }
    write_lse(u, first, most, sum);
  }
}

}  // namespace attile::ATTILE_ISA
