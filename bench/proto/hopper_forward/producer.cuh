// The producer thread: finds the next output tile, hands it over (Work), and keeps the rings of Q, K, V and bias full by TMA.
#pragma once

#include "params.cuh"

// Tile `index` of the order; j_end = 0 if there is none.
template <class T>
__device__ inline Work describe(const Params& p, PackedOrder& packed, int index) {
  Work w{};
  if (index >= p.order.count()) return w;
  Tile t;
  w.seqlen_q = p.seqlen_q, w.seqlen_k = p.seqlen_k;
  if (T::kBand && p.cu_seqlens_q) {
    if (!packed.find(p.cu_seqlens_q, p.sequences, p.order.heads, T::kTileM, index, t)) return w;
    w.row0_q = p.cu_seqlens_q[t.batch], w.seqlen_q = p.cu_seqlens_q[t.batch + 1] - w.row0_q;
    w.row0_k = p.cu_seqlens_k[t.batch], w.seqlen_k = p.cu_seqlens_k[t.batch + 1] - w.row0_k;
  } else {
    t = p.order[index];
  }
  w.m = t.m, w.head = t.head, w.batch = t.batch;
  const TileRange keys = band<T>(p, w.seqlen_q, w.seqlen_k).template keys<T::kTileN>(t.m * T::kTileM, (t.m + 1) * T::kTileM);
  w.j_begin = T::kBand ? keys.begin : 0, w.j_end = keys.end;
  if (T::kRanges && p.ranges.tiles) {
    const int4 tiles = p.ranges.tiles[int64_t(w.batch * p.ranges.batches + w.head * p.ranges.heads) * p.order.m_tiles + w.m];
    w.j_begin = max(w.j_begin, tiles.x), w.j_end = min(w.j_end, tiles.y);
    w.clean_begin = tiles.z, w.clean_end = tiles.w;
    if (w.j_begin >= w.j_end) w.j_begin = keys.end - 1, w.j_end = keys.end;  // none: any one tile, which masks itself
  }
  return w;
}

template <class T>
__device__ inline void produce(const Params& p, SharedStorage<T>& smem) {
  const Addresses<T> at{ptx::smem_address(&smem)};
  auto q_ring = at.q_ring();
  auto k_ring = at.k_ring(), v_ring = at.v_ring();
  auto work_ring = at.work_ring();
  auto bias_ring = at.bias_ring();
  const int count = p.order.count();
  const int rank = T::kCluster == 1 ? 0 : ptx::cluster_rank();

  // What a copy needs to know of a tile's keys.
  struct Keys {
    int head, j_begin, j_end;
    RowOrigin origin;
    int bias_row, bias_head, bias_batch;  // kBias
  };
  auto keys_of = [&](const Work& w) {
    const bool is_packed = T::kBand && p.cu_seqlens_q;
    Keys keys{w.head / p.group, w.j_begin, w.j_end, row_origin<T>(is_packed, w.batch, w.row0_k, w.seqlen_k)};
    if constexpr (T::kBias) keys.bias_row = w.m * T::kTileM, keys.bias_head = w.head * p.bias_heads, keys.bias_batch = w.batch * p.bias_batches;
    return keys;
  };
  // Rows j * kTileN.. of K or V; a block of a cluster loads its share of the column blocks for all.
  auto load = [&](auto blocks, RingCursor<T::kStages>& ring, const CUtensorMap& map, uint32_t tiles, const Keys& w, int j) {
    constexpr int kBlocks = decltype(blocks)::value, kShare = kBlocks / T::kCluster, kBlockBytes = T::kTileN * 128;
    const uint32_t bar = ring.acquire(kBlocks * kBlockBytes);
    const uint32_t to = tiles + (ring.stage * kBlocks + rank * kShare) * kBlockBytes;
#pragma unroll
    for (int c = 0; c < kShare; ++c) {
      const int column = (rank * kShare + c) * T::kColumns, row = w.origin.first + j * T::kTileN;
      if constexpr (T::kCluster == 1)
        ptx::tma_load_5d(to + c * kBlockBytes, &map, bar, ptx::kEvictLast, column, row, w.head, w.origin.back, w.origin.x);
      else
        ptx::tma_load_5d_multicast(to + c * kBlockBytes, &map, bar, ptx::kEvictLast, (1 << T::kCluster) - 1, column, row, w.head,
                                   w.origin.back, w.origin.x);
    }
    ring.advance();
  };
  auto load_k = [&](const Keys& w, int j) {
    load(std::integral_constant<int, T::kBlocksQk>{}, k_ring, p.k, at.k(), w, j);
  };
  auto load_v = [&](const Keys& w, int j) {
    if constexpr (T::kFp8) {
      const uint32_t bar = v_ring.acquire(T::kVBytes);
#pragma unroll
      for (int c = 0; c < T::kBlocksV; ++c)
        ptx::tma_load_5d(at.v() + v_ring.stage * T::kVBytes + c * T::kVBlockBytes, &p.v, bar, ptx::kEvictLast, j * T::kTileN + c * 128, 0,
                         w.head, w.origin.back, 0);
      v_ring.advance();
    } else {
      load(std::integral_constant<int, T::kBlocksV>{}, v_ring, p.v, at.v(), w, j);
    }
  };
  auto load_bias = [&](const Keys& w, int j) {
    if constexpr (T::kBias) {
      const uint32_t bar = bias_ring.acquire(T::kBiasBytes);
#pragma unroll
      for (int c = 0; c < T::kTileN / T::kBiasColumns; ++c)
        ptx::tma_load_5d(at.bias() + bias_ring.stage * T::kBiasBytes + c * T::kTileM * T::kBiasRow, &p.bias, bar, ptx::kEvictFirst,
                         j * T::kTileN + c * T::kBiasColumns, w.bias_row, w.bias_head, w.bias_batch, 0);
      bias_ring.advance();
    }
  };
  auto load_q = [&](const Work& w) {
    const bool is_packed = T::kBand && p.cu_seqlens_q;
    const RowOrigin origin = row_origin<T>(is_packed, w.batch, w.row0_q, w.seqlen_q);
    const uint32_t bar = q_ring.acquire(T::kQBytes);
#pragma unroll
    for (int c = 0; c < T::kBlocksQk; ++c)
      ptx::tma_load_5d(at.q() + q_ring.stage * T::kQBytes + c * T::kTileM * 128, &p.q, bar, ptx::kEvictFirst, c * T::kColumns,
                       origin.first + w.m * T::kTileM, w.head, origin.back, origin.x);
    q_ring.advance();
  };
  auto tell = [&](const Work& w) {
    work_ring.wait_empty();
    smem.work[work_ring.stage] = w;
    ptx::mbarrier_arrive(work_ring.full());
    work_ring.advance();
  };

  int index = blockIdx.x;
  unsigned drawn = 0;
  // The next tile: drawn two key tiles before it is needed (blocks that run ahead get more).
  auto draw = [&] {
    if constexpr (T::kTune.schedule == Schedule::kDynamic) drawn = atomicAdd(p.counter, 1u);
  };
  auto next_index = [&] {
    if constexpr (T::kTune.schedule == Schedule::kSingle) index = count;
    if constexpr (T::kTune.schedule == Schedule::kStatic) index += gridDim.x;
    if constexpr (T::kTune.schedule == Schedule::kDynamic) {
      if (drawn == static_cast<unsigned>(count - 1)) atomicExch(p.counter, 0u);
      index = static_cast<int>(drawn + gridDim.x);
    }
  };
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
  while (T::kTune.schedule == Schedule::kDynamic && index < count) draw(), next_index();  // every number is drawn
}
