// Rebuilding: a key head's slices of both weights are packed once a unit; then, for every tile of keys, the latents are packed once and
// multiplied by both, the rope part is copied behind each key, and the forward kernel attends to the tile with all rows of the unit.
#include <cstring>
#include <utility>

#include "cpu/mla/strategies.hpp"

namespace attile {

struct RebuildHooks::Tile {
  const RebuildHooks* hooks;
  ProjectionRows latents, rope;
  char *w_kc, *w_vc, *rows, *product;  // packed
  char *k, *v;                         // [block_k] rows of K and V
  int64_t k_stride, v_stride;
};

struct RebuildHooks::Layout {
  size_t w_kc, w_vc, rows, product, k, v, total;
  int64_t k_stride, v_stride;

  Layout(const RebuildHooks& hooks, int64_t block_k) {
    const Latents& latents = hooks.latents;
    k_stride = static_cast<int64_t>(whole_lines(hooks.p.head_dim * hooks.size));
    v_stride = static_cast<int64_t>(whole_lines(hooks.p.head_dim_v * hooks.size));
    size_t at = whole_lines(sizeof(Tile));
    const auto take = [&](size_t bytes) { return std::exchange(at, at + bytes); };
    w_kc = take(hooks.weight_bytes(latents.rank, latents.nope_dim));
    w_vc = take(hooks.weight_bytes(latents.rank, hooks.p.head_dim_v));
    rows = take(hooks.rows_bytes(block_k, latents.rank));
    product = take(hooks.product_bytes(block_k));
    k = take(block_k * k_stride);
    v = take(block_k * v_stride);
    total = at;
  }
};

// Queries in two arrays are joined.
size_t RebuildHooks::unit_bytes(const Plan& plan) const { return latents.q_rope ? whole_lines(plan.block_q * p.head_dim * size) : 0; }
size_t RebuildHooks::worker_bytes(const Plan& plan) const { return Layout(*this, plan.block_k).total; }

void RebuildHooks::begin(const UnitCall& call) const {
  if (call.stage == UnitStage::join) return;
  const int64_t row_bytes = p.head_dim * size, group = latents.rope_by_head ? 1 : p.group;
  if (latents.q_rope) {
    const Unit& u = call.unit;
    for (int64_t r = 0; r < u.count; ++r) {
      char* to = call.unit_scratch + r * row_bytes;
      if (call.stage != UnitStage::part) {
        const int64_t i = (call.item.first + r) / group, h = call.head * group + (call.item.first + r) % group;
        std::memcpy(to, call.rows[r].q, latents.nope_dim * size);
        std::memcpy(to + latents.nope_dim * size, rope_query(call.item, i, h), rope_bytes);
      }
      call.rows[r].q = to;
    }
    for (int64_t r = u.count; r < call.padded; ++r) call.rows[r].q = call.rows[u.count - 1].q;
  }
  if (call.stage == UnitStage::prepare) return;

  const Layout layout(*this, call.unit.block_k);
  Tile& tile = *reinterpret_cast<Tile*>(call.worker_scratch);
  const auto at = [&](size_t offset) { return call.worker_scratch + offset; };
  tile = {this,
          latents_of(call.item),
          rope_keys_of(call.item, call.head),
          at(layout.w_kc),
          at(layout.w_vc),
          at(layout.rows),
          at(layout.product),
          at(layout.k),
          at(layout.v),
          layout.k_stride,
          layout.v_stride};
  const int64_t head = latents.rope_by_head ? call.head / p.group : call.head;
  isa.pack_weight[accumulator](w_kc(head), tile.w_kc);
  isa.pack_weight[accumulator](w_vc(head), tile.w_vc);
  call.unit.maker = {make, &tile};
  call.unit.k = tile.k;
  call.unit.v = tile.v;
  call.unit.k_stride = tile.k_stride;
  call.unit.v_stride = tile.v_stride;
}

void RebuildHooks::make(const Unit& unit, int64_t begin, int64_t end) {
  const Tile& tile = *static_cast<const Tile*>(unit.maker.context);
  const RebuildHooks& hooks = *tile.hooks;
  const Latents& latents = hooks.latents;
  const int64_t keys = end - begin;
  const ProjectionRows rows = {tile.latents.data + begin * tile.latents.stride, tile.latents.stride, keys};
  hooks.isa.pack_rows[hooks.accumulator](rows, latents.rank, hooks.p.dtype, tile.rows);
  const auto project = hooks.isa.project_within[hooks.accumulator];
  project(tile.rows, keys, tile.w_kc, latents.rank, latents.nope_dim, hooks.p.dtype, tile.k, tile.k_stride, tile.product);
  project(tile.rows, keys, tile.w_vc, latents.rank, hooks.p.head_dim_v, hooks.p.dtype, tile.v, tile.v_stride, tile.product);
  if (hooks.rope_bytes == 0) return;
  for (int64_t j = 0; j < keys; ++j)
    std::memcpy(tile.k + j * tile.k_stride + latents.nope_dim * hooks.size, tile.rope.data + (begin + j) * tile.rope.stride,
                hooks.rope_bytes);
}

}  // namespace attile
