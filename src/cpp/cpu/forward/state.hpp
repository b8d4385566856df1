// The softmax state of a block of rows at its beginning and end: rows begin from their sinks, parts of the key range are joined in
// their order, and one transposition a block turns the state into rows of out.
#pragma once

#include "cpu/forward/pack.hpp"
#include "cpu/simd/math.hpp"

namespace attile::ATTILE_ISA {

// Rows start from their sinks, which are already seen and carry no value.
template <class T>
inline void begin_state(const Unit& u, int64_t padded_rows) {
  const int64_t panels = (padded_rows + kPanel<T> - 1) / kPanel<T>, columns = round_up(u.head_dim_v, kChunk);
  T* out = static_cast<T*>(u.state.out);
  for (int64_t i = 0; i < panels * columns * kPanel<T>; i += kLanes<T>) store(out + i, Vec<T>{});
  for (int64_t r = 0; r < padded_rows; ++r) {
    static_cast<T*>(u.state.max)[r] = static_cast<T>(u.rows[r].sink_max);
    static_cast<T*>(u.state.sum)[r] = static_cast<T>(u.rows[r].sink_sum);
  }
}

// Rows of one head lie far apart, and a store to a line that is elsewhere holds up those behind it.
inline void prefetch_row(const Unit& u, char* row) {
  const int64_t bytes = u.head_dim_v * element_bytes(u.dtype);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 1, 3);
}

// 1 / sum, by which rows of O become out; 1 where nothing was seen.
template <class T>
inline Vec<T> out_factor(Vec<T> sum) {
  const Vec<T> one = broadcast<T>(1);
  return one / (sum == Vec<T>{} ? one : sum);
}

// out = O / sum (0 where nothing was seen), lse = ln(2) max + ln(sum), of rows [begin, end); begin a multiple of a vector.
template <class T>
inline void write_rows(const Unit& u, const BlockState& state, int64_t begin, int64_t end) {
  constexpr int W = kLanes<T>;
  for (int64_t first = begin; first < end; first += W) {
    const PanelState<T> from = panel_state<T>(u, state, first / kPanel<T>);
    const int64_t lane = first % kPanel<T>, here = end - first < W ? end - first : W;
    const QueryRow* rows = u.rows + first;
    const Vec<T> factor = u.normalize ? out_factor<T>(load<Vec<T>>(from.sum + lane)) : broadcast<T>(1);
    for (int64_t r = first + W; r < first + 2 * W && r < end; ++r) prefetch_row(u, u.rows[r].out);
    with_input_format<T>(u.dtype, [&](auto format) {
      using Format = decltype(format);
      constexpr int64_t kSize = sizeof(typename Format::Storage);
      for (int64_t d = 0; d < u.head_dim_v; d += W) {
        const int64_t columns = u.head_dim_v - d < W ? u.head_dim_v - d : W;
        Vec<T> x[W];
#pragma GCC unroll 16
        for (int e = 0; e < W; ++e) {
          x[e] = e < columns ? load<Vec<T>>(from.out + (d + e) * kPanel<T> + lane) * factor : Vec<T>{};
        }
        transpose<T>(x);
        alignas(64) typename Format::Storage staged[W];
        for (int64_t l = 0; l < here; ++l) {
          char* to = rows[l].out + d * kSize;
          if (columns == W) {
            store_as<T, Format>(to, x[l]);
          } else {
            store_as<T, Format>(staged, x[l]);
            __builtin_memcpy(to, staged, columns * kSize);
          }
        }
      }
    });
    for (int64_t l = 0; l < here; ++l) {
      if (rows[l].lse == nullptr) continue;
      const double max = static_cast<double>(from.max[lane + l]), total = static_cast<double>(from.sum[lane + l]);
      store(rows[l].lse, static_cast<T>(max * kLn2<double> + __builtin_log(total)));
    }
  }
}

template <class T>
inline void write_rows(const Unit& u, const BlockState& state) {
  write_rows<T>(u, state, 0, u.count);
}

// Joins parts into the first, in their order.
template <class T>
void join(const Unit& u, const BlockState* parts, int64_t count) {
  constexpr int W = kLanes<T>;
  for (int64_t r = 0; r < u.count; r += W) {
    const int64_t panel = r / kPanel<T>, lane = r % kPanel<T>;
    const PanelState<T> a = panel_state<T>(u, parts[0], panel);
    for (int64_t i = 1; i < count; ++i) {
      const PanelState<T> b = panel_state<T>(u, parts[i], panel);
      const Vec<T> max_a = load<Vec<T>>(a.max + lane), max_b = load<Vec<T>>(b.max + lane), top = max(max_a, max_b);
      const Vec<T> base = top == -kInfinity<T> ? Vec<T>{} : top;
      const Vec<T> weight_a = exp2<T>(max_a - base), weight_b = exp2<T>(max_b - base);
      store(a.max + lane, top);
      store(a.sum + lane, load<Vec<T>>(a.sum + lane) * weight_a + load<Vec<T>>(b.sum + lane) * weight_b);
      for (int64_t d = 0; d < u.head_dim_v; ++d) {
        T* to = a.out + d * kPanel<T> + lane;
        store(to, load<Vec<T>>(to) * weight_a + load<Vec<T>>(b.out + d * kPanel<T> + lane) * weight_b);
      }
    }
  }
  write_rows<T>(u, parts[0]);
}

}  // namespace attile::ATTILE_ISA
