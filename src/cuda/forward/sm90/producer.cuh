// The producer thread: finds the next output tile, hands it over (Work), and keeps the rings of Q, K, V and bias full by TMA.
#pragma once

#include "cuda/forward/sm90/addresses.cuh"
#include "cuda/forward/sm90/params.cuh"
#include "cuda/ptx/tma.cuh"

namespace attile::cuda::sm90 {

// Tile `index` of the order; j_end = 0 if there is none.
template <class T>
__device__ inline Work describe(const Params& p, PackedOrder& packed, int index) {
  Work w{};
  if (index >= p.order.count()) return w;
  Tile t;
  w.seqlen_q = p.seqlen_q, w.seqlen_k = p.seqlen_k;
  if (T::kBand && p.q_lengths.packed) {
    if (!packed.find(p.q_lengths, p.sequences, p.order.heads, tile_positions<T>(p), index, t, w.row0_q, w.seqlen_q)) return w;
    w.seqlen_k = 0;
    if (t.batch < p.sequences) w.row0_k = p.k_lengths.begin(t.batch), w.seqlen_k = p.k_lengths.length(t.batch);
  } else {
    t = p.order[index];
    if (T::kBand) w.seqlen_q = p.q_lengths.length(t.batch), w.seqlen_k = p.k_lengths.length(t.batch);
  }
  w.m = t.m, w.head = t.head, w.batch = t.batch;
  const int positions = tile_positions<T>(p);
  const TileRange keys = band<T>(p, w.seqlen_q, w.seqlen_k).template keys<T::kTileN>(t.m * positions, (t.m + 1) * positions);
  w.j_begin = T::kBand ? keys.begin : 0, w.j_end = keys.end;
  if (T::kRanges && p.ranges.tiles && w.m < p.ranges.m_tiles && w.batch < p.sequences) {
    const int4 tiles = p.ranges.tiles[int64_t(w.batch * p.ranges.batches + w.head * p.ranges.heads) * p.ranges.m_tiles + w.m];
    w.j_begin = max(w.j_begin, tiles.x), w.j_end = min(w.j_end, tiles.y);
    w.clean_begin = tiles.z, w.clean_end = tiles.w;
    if (w.j_begin >= w.j_end) w.j_begin = keys.end - 1, w.j_end = keys.end;  // none: any one tile, which masks itself
  }
  return w;
}

template <class T>
__device__ inline void produce(const Params& p, SharedStorage<T>& smem) {
  const Addresses<T> at{ptx::opaque_shared_address(&smem)};
  auto q_ring = at.q_ring();
  auto k_ring = at.k_ring(), v_ring = at.v_ring();
  auto work_ring = at.work_ring();
  auto bias_ring = at.bias_ring();

  // What a copy needs to know of a tile's keys. Those of K past the end are masked, those of V must be zeros.
  struct Keys {
    int j_begin, j_end, head, batch, row0;
    RowOrigin v;
    int bias_row, bias_head, bias_batch;  // kBias
  };
  auto keys_of = [&](const Work& w) {
    const int batch = T::kBand && p.k_lengths.packed ? 0 : w.batch;
    Keys keys{w.j_begin, w.j_end, w.head / p.group, batch, T::kBand ? w.row0_k : 0, {}, 0, 0, 0};
    if constexpr (T::kFp8)
      keys.v = {p.k_lengths.packed ? transposed_begin(w.batch < p.sequences ? w.row0_k : p.k_lengths.rows, w.batch) : 0, keys.head, batch};
    else
      keys.v = T::kBand ? origin(p.v_steps, w.row0_k, w.seqlen_k, keys.head, batch) : RowOrigin{0, keys.head, batch};
    if constexpr (T::kBias) keys.bias_row = w.m * T::kTileM, keys.bias_head = w.head * p.bias_heads, keys.bias_batch = w.batch * p.bias_batches;
    return keys;
  };
  auto load_k = [&](const Keys& w, int j) {
    const uint32_t bar = k_ring.acquire(T::kKBytes), to = at.k() + k_ring.stage * T::kKBytes;
#pragma unroll
    for (int c = 0; c < T::kBlocksQk; ++c)
      ptx::tma_load_4d(to + c * T::kTileN * 128, &p.k, bar, ptx::kEvictLast, c * T::kColumns, w.row0 + j * T::kTileN, w.head, w.batch);
    k_ring.advance();
  };
  auto load_v = [&](const Keys& w, int j) {
    const uint32_t bar = v_ring.acquire(T::kVBytes), to = at.v() + v_ring.stage * T::kVBytes;
#pragma unroll
    for (int c = 0; c < T::kBlocksV; ++c) {
      if constexpr (T::kFp8)
        ptx::tma_load_4d(to + c * T::kVBlockBytes, &p.v, bar, ptx::kEvictLast, w.v.first + j * T::kTileN + c * 128, 0, w.v.a, w.v.b);
      else
        ptx::tma_load_4d(to + c * T::kVBlockBytes, &p.v, bar, ptx::kEvictLast, c * T::kColumns, w.v.first + j * T::kTileN, w.v.a, w.v.b);
    }
    v_ring.advance();
  };
  auto load_bias = [&](const Keys& w, int j) {
    if constexpr (T::kBias) {
      const uint32_t bar = bias_ring.acquire(T::kBiasBytes);
#pragma unroll
      for (int c = 0; c < T::kTileN / T::kBiasColumns; ++c)
        ptx::tma_load_4d(at.bias() + bias_ring.stage * T::kBiasBytes + c * T::kTileM * T::kBiasRow, &p.bias, bar, ptx::kEvictFirst,
                         j * T::kTileN + c * T::kBiasColumns, w.bias_row, w.bias_head, w.bias_batch);
      bias_ring.advance();
    }
  };
  auto load_q = [&](const Work& w) {
    const RowOrigin o = T::kBand ? origin(p.q_steps, w.row0_q, w.seqlen_q, w.head, p.q_lengths.packed ? 0 : w.batch) : RowOrigin{0, w.head, w.batch};
    const uint32_t bar = q_ring.acquire(T::kPacks ? p.packing.rows() * T::kBlocksQk * 128 : T::kQBytes);
#pragma unroll
    for (int c = 0; c < T::kBlocksQk; ++c)
      ptx::tma_load_5d(at.q() + q_ring.stage * T::kQBytes + c * T::kTileM * 128, &p.q, bar, ptx::kEvictFirst, c * T::kColumns, 0,
                       o.first + w.m * tile_positions<T>(p), o.a, o.b);
    q_ring.advance();
  };
  auto tell = [&](const Work& w) {
    work_ring.wait_empty();
    smem.work[work_ring.stage] = w;
    ptx::mbarrier_arrive(work_ring.full());
    work_ring.advance();
  };

  int index = static_cast<int>(blockIdx.x);
  unsigned drawn = 0;
  // The next tile: drawn two key tiles before it is needed (blocks that run ahead get more).
  auto draw = [&] {
    if constexpr (T::kDynamic) drawn = atomicAdd(p.counter, 1u);
  };
  auto next_index = [&] { index = T::kDynamic ? static_cast<int>(drawn + gridDim.x) : index + static_cast<int>(gridDim.x); };
  PackedOrder packed;

  Work w = describe<T>(p, packed, index);
  tell(w);
  Keys keys = keys_of(w);
  if (keys.j_end > 0) load_q(w), load_k(keys, keys.j_end - 1), load_bias(keys, keys.j_end - 1);
  while (keys.j_end > 0) {
    int j = keys.j_end - 1;
    auto load_pairs = [&](int down_to) {
#pragma unroll 1
      for (; j > down_to; --j) load_k(keys, j - 1), load_bias(keys, j - 1), load_v(keys, j);
    };
    load_pairs(keys.j_begin + 2);
    draw();
    load_pairs(keys.j_begin);
    next_index();
    w = describe<T>(p, packed, index);
    tell(w);
    // The next tile's first loads go ahead of this one's last V, whose place is not yet free.
    const Keys next = keys_of(w);
    if (next.j_end > 0) {
      if constexpr (T::kQStages > 1) load_q(w);
      load_k(next, next.j_end - 1), load_bias(next, next.j_end - 1);
    }
    load_v(keys, keys.j_begin);
    if (next.j_end > 0 && T::kQStages == 1) load_q(w);
    keys = next;
  }
}

}  // namespace attile::cuda::sm90
