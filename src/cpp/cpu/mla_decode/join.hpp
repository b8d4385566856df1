// The parts of a block's keys as one, some columns of O at a time, so that several threads can join one block:
//
//   m = max m_i;   l = sum_i 2^(m_i - m) l_i;   O = sum_i 2^(m_i - m) O_i, in the order of the parts
//
// Each part is read once, all of them abreast: what another core computed comes out of its cache, and lines that are asked for one after
// another would be waited for one after another.
#pragma once

#include "cpu/forward/state.hpp"
#include "cpu/mla_decode/unit.hpp"

namespace attile::ATTILE_ISA {

// Columns [begin, begin + u.head_dim_v) of parts that have `latent` of them. The rows and the state of `u` are those of the columns alone.
template <class T>
void join_columns(const Unit& u, const BlockState* parts, int64_t count, int64_t begin, int64_t latent) {
  constexpr int W = kLanes<T>;
  Unit whole = u;
  whole.head_dim_v = latent;
  for (int64_t r = 0; r < u.count; r += W) {
    const int64_t panel = r / kPanel<T>, lane = r % kPanel<T>;
    const auto part = [&](int64_t i) { return panel_state<T>(whole, parts[i], panel); };
    Vec<T> top = load<Vec<T>>(part(0).max + lane), sum{};
    for (int64_t i = 1; i < count; ++i) top = max(top, load<Vec<T>>(part(i).max + lane));
    const Vec<T> base = top == -kInfinity<T> ? Vec<T>{} : top;
    const auto weight = [&](int64_t i) { return exp2<T>(load<Vec<T>>(part(i).max + lane) - base); };
    for (int64_t i = 0; i < count; ++i) sum += load<Vec<T>>(part(i).sum + lane) * weight(i);
    const PanelState<T> joined = panel_state<T>(u, u.state, panel);
    store(joined.max + lane, top);
    store(joined.sum + lane, sum);
    for (int64_t d = 0; d < u.head_dim_v; d += W) {
      Vec<T> x[W] = {};
      for (int64_t i = 0; i < count; ++i) {
        const Vec<T> factor = weight(i);
        const T* from = part(i).out + (begin + d) * kPanel<T> + lane;
#pragma GCC unroll 16
        for (int e = 0; e < W; ++e) x[e] = fma(load<Vec<T>>(from + e * kPanel<T>), factor, x[e]);
      }
#pragma GCC unroll 16
      for (int e = 0; e < W; ++e) store(joined.out + (d + e) * kPanel<T> + lane, x[e]);
    }
  }
  write_rows<T>(u, u.state);
}

}  // namespace attile::ATTILE_ISA
