// Where things lie in a forward call's workspace: the list of items, the partial states of split key ranges, and for every
// worker its rows, panels, tiles and state. The last does not grow with the sequence lengths.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/problem.hpp"
#include "cpu/forward/unit.hpp"

namespace attile {

// A block of query rows of a sequence, for every key head; or, to be cleared, tokens outside the sequences, for every head.
struct ForwardItem {
  int64_t sequence;
  int64_t first, count;  // rows r = i * group + g; tokens of the view when clearing
  int64_t keys;          // between the first and the last that a row of the block sees; negative: to be cleared
};

struct ForwardLayout {
  int64_t lanes, rows, columns, k_rows, v_row;  // rows and columns (head_dim_v) as padded
  size_t element;
  size_t max, sum, out, state_bytes;  // of a BlockState, from its start
  size_t queries, q, k, v, scores, probabilities, tops, bias, ids, state, worker_bytes;
  size_t items, parts, workers, hook_units, hook_workers, total;

  ForwardLayout(const ForwardIsa& isa, const AttentionProblem& p, int64_t block_q, int64_t block_k, int64_t item_count, int64_t part_count,
                int worker_count, size_t hook_units_bytes = 0, size_t hook_workers_bytes = 0) {
    const auto up = [](int64_t x, int64_t to) { return (x + to - 1) / to * to; };
    element = p.dtype == DType::f64 ? 8 : 4;
    lanes = isa.vector_bytes / static_cast<int64_t>(element);
    const int64_t panel = kPanelVectors * lanes;
    rows = up(block_q, panel);
    columns = up(p.head_dim_v, kChunk);
    k_rows = block_k + isa.block_step;
    v_row = columns + kChunk;

    size_t at = 0;
    const auto take = [&](size_t bytes) {
      const size_t begin = at;
      at += (bytes + 63) / 64 * 64;
      return begin;
    };
    max = take(rows * element);
    sum = take(rows * element);
    out = take(rows * columns * element);
    state_bytes = at;

    at = 0;
    queries = take(rows * sizeof(QueryRow));
    if (isa.tile_parts > 0) {
      const int64_t bytes = 2 * isa.tile_parts, step = isa.block_step;
      q = take(rows * up(p.head_dim, step) * bytes);
      k = take(up(p.head_dim, step) * up(block_k, step) * bytes);
      v = take(up(p.head_dim_v, step) * up(block_k, step) * bytes);
      scores = take(2 * kTileGroup * panel * element);
      probabilities = take(up(block_k, step) * panel * bytes);
      tops = take(rows * element);
      bias = take(p.bias.dtype == DType::bf16 && p.dtype == DType::bf16 ? bias_tile_bytes(up(block_k, step)) : 0);
    } else {
      q = take(rows * p.head_dim * element);
      k = take(up(p.head_dim, kChunk) * k_rows * element);
      v = take(block_k * v_row * element);
      scores = take(up(block_k, isa.block_step) * panel * element);
      probabilities = tops = bias = at;
    }
    ids = take(block_k * sizeof(int64_t));
    state = take(state_bytes);
    worker_bytes = at;

    at = 0;
    items = take(item_count * sizeof(ForwardItem));
    parts = take(part_count * state_bytes);
    workers = take(worker_count * worker_bytes);
    hook_units = take(hook_units_bytes);
    hook_workers = take(hook_workers_bytes);
    total = at + 64;
  }
};

}  // namespace attile
