// Absorbing: each query head's rows of a unit are brought to the latent space by its key head's slice of w_kc, transposed; the forward
// kernel attends to latents, with the rope parts behind both; and the output, latent still, is multiplied by the slice of w_vc.
#include <algorithm>
#include <cstring>
#include <utility>

#include "cpu/mla/strategies.hpp"

namespace attile {
namespace {

constexpr int64_t kRows = 96;  // of a head that are multiplied at a time

}  // namespace

struct AbsorbHooks::Tile {
  const AbsorbHooks* hooks;
  ProjectionRows latents, rope;
  char* keys;  // [block_k][rank + rope_dim]
};

struct AbsorbHooks::Layout {
  size_t weight, rows, product, keys, worker;  // of a worker
  size_t queries, outputs, unit;               // of a unit: [block_q] rows
  int64_t q_stride, out_stride;

  Layout(const AbsorbHooks& hooks, int64_t block_q, int64_t block_k) {
    const Latents& latents = hooks.latents;
    q_stride = static_cast<int64_t>(whole_lines((latents.rank + latents.rope_dim) * hooks.size));
    out_stride = static_cast<int64_t>(whole_lines(latents.rank * hooks.size));
    size_t at = whole_lines(sizeof(Tile));
    const auto take = [&](size_t bytes) { return std::exchange(at, at + bytes); };
    const int64_t held = std::min(kRows, block_q);
    weight = take(std::max(hooks.weight_bytes(latents.nope_dim, latents.rank), hooks.weight_bytes(latents.rank, hooks.p.head_dim_v)));
    rows = take(hooks.rows_bytes(held, std::max(latents.nope_dim, latents.rank)));
    product = take(hooks.product_bytes(held));
    keys = take(latents.rope_dim ? block_k * q_stride : 0);
    worker = at;
    at = 0;
    queries = take(block_q * q_stride);
    outputs = take(block_q * out_stride);
    unit = at;
  }
};

size_t AbsorbHooks::unit_bytes(const Plan& plan) const { return Layout(*this, plan.block_q, plan.block_k).unit; }
size_t AbsorbHooks::worker_bytes(const Plan& plan) const { return Layout(*this, plan.block_q, plan.block_k).worker; }

// The rows of query head g of the group in a unit: the first of them, how many, and its position.
struct HeadRows {
  int64_t first, count, position;
  HeadRows(const UnitCall& call, int64_t group, int64_t g) {
    const int64_t offset = (g - call.item.first % group + group) % group;
    first = offset;
    count = call.unit.count > offset ? (call.unit.count - offset + group - 1) / group : 0;
    position = (call.item.first + offset) / group;
  }
};

void AbsorbHooks::queries(const UnitCall& call) const {
  const Layout layout(*this, call.block_q, call.unit.block_k);
  const int64_t n = group();
  char* weight = call.worker_scratch + layout.weight;
  for (int64_t g = 0; g < n; ++g) {
    const HeadRows rows(call, n, g);
    if (rows.count == 0) continue;
    const int64_t h = query_head(call, g), stride = n * layout.q_stride;
    isa.pack_weight[accumulator](w_kc_transposed(h / p.group), weight);
    char* to = call.unit_scratch + layout.queries + rows.first * layout.q_stride;
    for (int64_t r = 0; r < rows.count; r += kRows) {
      const ProjectionRows from = {call.rows[rows.first + r * n].q, p.q.stride[1] * size, std::min(kRows, rows.count - r)};
      isa.pack_rows[accumulator](from, latents.nope_dim, p.dtype, call.worker_scratch + layout.rows);
      isa.project[accumulator](call.worker_scratch + layout.rows, from.count, weight, latents.nope_dim, latents.rank, p.dtype,
                               to + r * stride, stride, call.worker_scratch + layout.product);
    }
    for (int64_t r = 0; r < rows.count && rope_bytes > 0; ++r)
      std::memcpy(to + r * stride + latents.rank * size, rope_query(call.item, rows.position + r, h), rope_bytes);
  }
}

void AbsorbHooks::keys(const UnitCall& call, Tile& tile) const {
  tile = {this, latents_of(call.item), rope_keys_of(call.item, call.head), nullptr};
  Unit& u = call.unit;
  // One array [.., rank + rope] seen as two is already what the kernel reads.
  const bool joined =
      rope_bytes == 0 || (tile.rope.data == tile.latents.data + latents.rank * size && tile.rope.stride == tile.latents.stride);
  if (joined) {
    u.k = u.v = tile.latents.data;
    u.k_stride = u.v_stride = tile.latents.stride;
    return;
  }
  const Layout layout(*this, call.block_q, u.block_k);
  tile.keys = call.worker_scratch + layout.keys;
  u.maker = {make, &tile};
  u.k = u.v = tile.keys;
  u.k_stride = u.v_stride = layout.q_stride;
}

void AbsorbHooks::make(const Unit& unit, int64_t begin, int64_t end) {
  const Tile& tile = *static_cast<const Tile*>(unit.maker.context);
  const int64_t latent_bytes = tile.hooks->latents.rank * tile.hooks->size;
  for (int64_t j = begin; j < end; ++j) {
    char* to = tile.keys + (j - begin) * unit.k_stride;
    std::memcpy(to, tile.latents.data + j * tile.latents.stride, latent_bytes);
    std::memcpy(to + latent_bytes, tile.rope.data + j * tile.rope.stride, tile.hooks->rope_bytes);
  }
}

void AbsorbHooks::begin(const UnitCall& call) const {
  if (call.stage == UnitStage::whole || call.stage == UnitStage::prepare) queries(call);
  if (call.stage == UnitStage::prepare) return;
  if (call.stage != UnitStage::join) keys(call, *reinterpret_cast<Tile*>(call.worker_scratch));
  const Layout layout(*this, call.block_q, call.unit.block_k);
  for (int64_t r = 0; r < call.padded; ++r) {
    const int64_t from = std::min(r, call.unit.count - 1);
    call.rows[r].q = call.unit_scratch + layout.queries + from * layout.q_stride;
    call.rows[r].out = call.unit_scratch + layout.outputs + from * layout.out_stride;
  }
}

void AbsorbHooks::end(const UnitCall& call) const {
  const Layout layout(*this, call.block_q, call.unit.block_k);
  const int64_t n = group(), b = p.q_seqs.batch_index(call.item.sequence), first_row = p.q_seqs.first_row(call.item.sequence);
  char* weight = call.worker_scratch + layout.weight;
  for (int64_t g = 0; g < n; ++g) {
    const HeadRows rows(call, n, g);
    if (rows.count == 0) continue;
    const int64_t h = query_head(call, g);
    isa.pack_weight[accumulator](w_vc(h / p.group), weight);
    for (int64_t r = 0; r < rows.count; r += kRows) {
      const char* out = call.unit_scratch + layout.outputs + (rows.first + r * n) * layout.out_stride;
      const ProjectionRows from = {out, n * layout.out_stride, std::min(kRows, rows.count - r)};
      isa.pack_rows[accumulator](from, latents.rank, p.dtype, call.worker_scratch + layout.rows);
      isa.project[accumulator](call.worker_scratch + layout.rows, from.count, weight, latents.rank, p.head_dim_v, p.dtype,
                               p.out.at(b, first_row + rows.position + r, h), p.out.stride[1] * size, call.worker_scratch + layout.product);
    }
  }
}

}  // namespace attile
