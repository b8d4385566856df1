// Attention forward on mma.sync, for sm_80 and newer: a block has kTileM query rows of one key head and walks over tiles of kTileN
// keys; a warp has 16 kM of the rows and all keys of the tile.
//
//   for tiles:  S = Q K^T;  scores;  softmax;  O = alpha O + P V
//
// K and V have a buffer each: V of a tile comes while its scores are computed, K of the next during softmax and P V; or two each,
// and both come a tile ahead. S and P never leave the registers; P is made 16 keys at a time between the products of those before. Cost of a tile: 2 kTileM kTileN (D + Dv) operations on tensor cores,
// kTileM kTileN exp2, kTileN (D + Dv) elements from L2.
#pragma once

#include <type_traits>

#include "cuda/generic/forward_traits.hpp"
#include "cuda/generic/softmax.cuh"
#include "cuda/ptx/keep.cuh"
#include "cuda/tile/product.cuh"
#include "cuda/tile/rows.cuh"

namespace attile::cuda::generic {

// out 0 and lse -inf for rows past the last sequence.
template <class Traits>
__device__ __forceinline__ void clear_rows(const ForwardParams& p, const Work& w) {
  using Element = typename Traits::Element;
  for (int row = w.clear; row < w.clear_end; row += w.clear_step)
    for (int g = 0; g < p.group; ++g) {
      const int h = w.head_k * p.group + g;
      char* out = p.out.data + row * p.out.row + h * p.out.head;
      for (int d = threadIdx.x; d < p.head_dim_v; d += Traits::kThreads)
        store_unaligned<typename Element::Storage>(out + d * Element::kBytes, 0);
      if (p.lse && threadIdx.x == 0) p.lse[h * p.lse_head + row * p.lse_row] = -INFINITY;
    }
}

// In place of BiasRegisters where there are none.
struct NoBias {
  __device__ __forceinline__ NoBias(const ForwardParams&, const Work&, int, int) {}
};

template <class Traits>
struct Block {
  using Element = typename Traits::Element;
  using Order = std::conditional_t<Traits::kBiased, Interleaved, InOrder>;
  static constexpr int kM = Traits::kM, kN = Traits::kTileN, kColumns = Traits::kDimV;

  const ForwardParams& p;
  const Work& w;
  uint32_t q, k, v, bias;  // shared memory

  __device__ __forceinline__ void load_q(int stage, int part) const {
    const char* base = p.q.data + w.q_batch * p.q.batch + w.q_first * p.q.row + part * Traits::kDim * Element::kBytes;
    load_rows<Traits::kTileM, Traits::kDim * Element::kBytes, Traits::kThreads>(
        q + stage * Traits::kQBytes, p.q.granule, (p.head_dim - part * Traits::kDim) * Element::kBytes, [&](int row) -> const char* {
          if (row >= w.count) return nullptr;
          const int i = (w.first + row) / p.group, g = w.first + row - i * p.group;
          return base + i * p.q.row + (w.head_k * p.group + g) * p.q.head;
        });
  }
  // kTileN rows from `key` on, of which `valid` bytes exist after the first `offset`.
  template <int kBytes>
  __device__ __forceinline__ void load_keys(uint32_t to, const Tensor& t, int key, int offset, int valid) const {
    const KeyRows<Traits::kGeneral> rows = key_rows<Traits::kGeneral>(p, w, t);
    if (std::is_same_v<Order, InOrder> && t.granule == 16 && !(Traits::kGeneral && rows.table) && key + kN <= rows.end) {
      load_whole_rows<kN, kBytes, Traits::kThreads>(to, rows.data + key * rows.row + offset, rows.row, valid);
    } else {
      load_rows<kN, kBytes, Traits::kThreads>(to, t.granule, valid, [&](int row) -> const char* {
        const char* at = rows.at(key + Order::row(row));
        return at ? at + offset : nullptr;
      });
    }
  }
  __device__ __forceinline__ void load_k(int key, int stage, int part) const {
    constexpr int kBytes = Traits::kDim * Element::kBytes;
    load_keys<kBytes>(k + stage * Traits::kKBytes, p.k, key, part * kBytes, p.head_dim * Element::kBytes - part * kBytes);
  }
  __device__ __forceinline__ void load_v(int key, int stage) const {
    constexpr int kBytes = kColumns * Element::kBytes;
    load_keys<kBytes>(v + stage * Traits::kVBytes, p.v, key, w.column_part * kBytes,
                      p.head_dim_v * Element::kBytes - w.column_part * kBytes);
  }

  __device__ __forceinline__ void load_bias(int key, int stage) const {
    constexpr int kBytes = kN * 2;
    const uint32_t to = bias + stage * Traits::kBiasBytes;
    if (p.group == 1 && p.bias.granule == 16 && w.count == Traits::kTileM && key + kN <= w.band.seqlen_k) {
      load_whole_rows<Traits::kTileM, kBytes, Traits::kThreads>(to, row_of(p.bias, w, w.head_k, w.first, key), p.bias.row, kBytes);
    } else {
      load_rows<Traits::kTileM, kBytes, Traits::kThreads>(to, p.bias.granule, (w.band.seqlen_k - key) * 2, [&](int row) -> const char* {
        if (row >= w.count) return nullptr;
        const int i = (w.first + row) / p.group;
        return row_of(p.bias, w, w.head_k * p.group + w.first + row - i * p.group, i, key);
      });
    }
  }

  // O and the state of the warp's rows, over the keys of the range. rows: of the general variant. first: the lane's first row.
  __device__ __forceinline__ void attend(const KeyRange& keys, const LaneRows<kM>& rows, int first, float (&o)[kM][kColumns / 8][4],
                                         SoftmaxState<kM>& state) const {
    const int warp_row = threadIdx.x / 32 * 16 * kM;
    uint32_t q_lane = q + warp_row * Traits::kRowBytes + lane_offset_a(Traits::kRowBytes), k_lane = k + lane_offset_b(Traits::kRowBytes),
             v_lane = v + lane_offset_values<Element>(Traits::kRowBytesV);
    ptx::keep(q_lane), ptx::keep(k_lane), ptx::keep(v_lane);
    // The keys that some row of the warp sees, and those that all see.
    const int i0 = (w.first + min(warp_row, w.count - 1)) / p.group, i1 = (w.first + min(warp_row + 16 * kM, w.count) - 1) / p.group;
    const KeyRange some{w.band.begin(i0), warp_row < w.count ? w.band.end(i1) : 0}, all{w.band.begin(i1), w.band.end(i0)};
    const int parts = Traits::kStreamed ? (p.head_dim + Traits::kDim - 1) / Traits::kDim : 1;
    constexpr int kSteps = Traits::kDim * Element::kBytes / 32;

    const bool stage_bias = Traits::kStagedBias && p.bias.data && p.bias.pairs;
    // Tiles of whole rows, where a thread's place in them serves them all.
    using CopiesK = RowCopies<kN, Traits::kDim * Element::kBytes, Traits::kThreads, Order>;
    using CopiesV = RowCopies<kN, kColumns * Element::kBytes, Traits::kThreads, Order>;
    constexpr bool kCopies = CopiesK::kEven && CopiesV::kEven && !Traits::kStreamed;
    const KeyRows<Traits::kGeneral> k_rows = key_rows<Traits::kGeneral>(p, w, p.k), v_rows = key_rows<Traits::kGeneral>(p, w, p.v);
    CopiesK copies_k(k_rows.data + keys.begin * k_rows.row, k_rows.row, p.head_dim * Element::kBytes);
    CopiesV copies_v(v_rows.data + keys.begin * v_rows.row, v_rows.row, p.head_dim_v * Element::kBytes);
    const int whole_end = kCopies && copies_k.takes(p.k.granule, k_rows.row) && copies_v.takes(p.v.granule, v_rows.row) &&
                                  p.column_parts == 1 && !(Traits::kGeneral && k_rows.table)
                              ? w.band.seqlen_k
                              : 0;
    const auto load_tile_k = [&](int key, int stage) {
      if (kCopies && key + kN <= whole_end) {
        copies_k.load(k + stage * Traits::kKBytes);
      } else {
        load_k(key, stage, 0);
      }
      copies_k.next();
    };
    const auto load_tile_v = [&](int key, int stage) {
      if (kCopies && key + kN <= whole_end) {
        copies_v.load(v + stage * Traits::kVBytes);
      } else {
        load_v(key, stage);
      }
      copies_v.next();
    };

    load_q(0, 0);
    load_tile_k(keys.begin, 0);
    if (Traits::kDouble) {
      load_tile_v(keys.begin, 0);
      if (stage_bias) load_bias(keys.begin, 0);
    }
    std::conditional_t<Traits::kBiased, BiasRegisters<kM, kN>, NoBias> next_bias(p, w, first, keys.begin);
    if constexpr (Traits::kBiased) next_bias.load(keys.begin, w.band.seqlen_k);
    int stage = 0;
    for (int key = keys.begin; key < keys.end; key += kN) {
      const bool needed = key < some.end && key + kN > some.begin;
      const bool more = key + kN < keys.end;
      float s[kM][kN / 8][4] = {};
      const auto multiply = [&](int part) {
        const int steps = (min(p.head_dim - part * Traits::kDim, Traits::kDim) * Element::kBytes + 31) / 32;
        scores_product<Element, kM, kN, kSteps, (Traits::kGeneral && Traits::kDim > 128), Traits::kRowBytes>(
            s, q_lane + (Traits::kStreamed ? stage * Traits::kQBytes : 0), k_lane + stage * Traits::kKBytes, steps, p.exact);
      };
      if constexpr (Traits::kDouble) {
        ptx::cp_async_wait();
        __syncthreads();
        if (more) {
          load_tile_k(key + kN, stage ^ 1);
          load_tile_v(key + kN, stage ^ 1);
          if (stage_bias) load_bias(key + kN, stage ^ 1);
        }
        if (needed) multiply(0);
      } else {
        for (int part = 0; part < parts; ++part) {
          ptx::cp_async_wait();
          __syncthreads();
          if (Traits::kStreamed && part + 1 < parts) {
            load_q(stage ^ 1, part + 1);
            load_k(key, stage ^ 1, part + 1);
          } else {
            load_tile_v(key, 0);
            if (stage_bias) load_bias(key, 0);
          }
          if (needed) multiply(part);
          if (Traits::kStreamed) stage ^= 1;
        }
        ptx::cp_async_wait();
        __syncthreads();
        if (more) {
          if (Traits::kStreamed) load_q(stage, 0);
          load_tile_k(key + kN, stage);
        }
      }
      const uint32_t values = v_lane + (Traits::kDouble ? stage * Traits::kVBytes : 0),
                     bias_rows = bias + (Traits::kStagesBias == 2 ? stage * Traits::kBiasBytes : 0) + warp_row * Traits::kBiasRowBytes;
      if (Traits::kDouble) stage ^= 1;
      if constexpr (Traits::kBiased) {
        if (needed) next_bias.template add<Element>(p.scale, s);
        if (more) next_bias.load(key + kN, w.band.seqlen_k);
      }
      if (!needed) continue;
      if constexpr (Traits::kGeneral) finish_scores<Traits::kStagedBias, kM, kN>(p, w, rows, bias_rows, key, s);

      if (key < all.begin || key + kN > all.end) {
        if constexpr (Traits::kGeneral) {
          apply_band<kM, kN>(w.band, rows, key, s);
        } else {
          apply_band<kM, kN, Order>(w.band, LaneRows<kM>(p, w, first), key, s);
        }
      }
      float offset[kM][2], sum[kM][2] = {};
      if (keeps_maximum(s, state)) {
#pragma unroll
        for (int m = 0; m < kM; ++m) offset[m][0] = state.max[m][0], offset[m][1] = state.max[m][1];
      } else {
        float alpha[kM][2];
        if constexpr (Traits::kBiased) {
          move_maximum(s, state, p.scale_log2, p.lazy, alpha, offset, [&]() { next_bias.template mend<Element>(s, more ? 2 : 1); });
        } else {
          move_maximum(s, state, p.scale_log2, p.lazy, alpha, offset);
        }
        scale_rows(o, alpha);
      }
      const int columns = p.head_dim_v - w.column_part * kColumns;
      const auto exponentials = [&](int step, int part, int parts) { exponentiate(s, sum, p.scale_log2, offset, step, part, parts); };
      if constexpr (Traits::kGeneral || Element::kBytes == 4) {
#pragma unroll
        for (int step = 0; step < kN / 16; ++step) exponentials(step, 0, 1);
        if constexpr (Traits::kGeneral)
          if (p.dropout) apply_dropout<kM, kN>(p, w, rows, key, s);
        values_product<Element, kM, kN, kColumns, (Traits::kGeneral && kColumns > 128), Traits::kRowBytesV>(o, s, values, columns, p.exact);
      } else {
        values_product<Element, kM, kN, kColumns, false, Traits::kRowBytesV>(o, s, values, columns, p.exact, exponentials);
      }
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) state.sum[m][r] += sum[m][r];
    }
  }
};

// Partial results of a split, float32: [kTileM][head_dim_v] of out, unnormalized, then [kTileM] maxima and [kTileM] sums.
__host__ __device__ constexpr int64_t part_floats(int tile_m, int head_dim_v) { return static_cast<int64_t>(tile_m) * (head_dim_v + 2); }

template <class Traits>
__device__ __forceinline__ void finish_rows(const ForwardParams& p, const Work& w, const LaneRows<Traits::kM>& rows, int first,
                                            float (&o)[Traits::kM][Traits::kDimV / 8][4], SoftmaxState<Traits::kM>& state) {
  using Element = typename Traits::Element;
  const int column0 = w.column_part * Traits::kDimV;
#pragma unroll
  for (int m = 0; m < Traits::kM; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first + 16 * m + 8 * r;
      float max = state.max[m][r], sum = sum_of_row(state.sum[m][r]), factor = 1.f;
      if (Traits::kGeneral && p.sinks && w.split == 0) factor = join_sinks(p, rows.head[m][r], max, sum);
      if (p.splits > 1) {
        if (row >= w.count) continue;
        float* part = p.parts + (static_cast<int64_t>(w.unit) * p.splits + w.split) * part_floats(Traits::kTileM, p.head_dim_v);
        if (threadIdx.x % 4 == 0 && w.column_part == 0) {
          part[Traits::kTileM * p.head_dim_v + row] = max;
          part[Traits::kTileM * (p.head_dim_v + 1) + row] = sum;
        }
#pragma unroll
        for (int n = 0; n < Traits::kDimV / 8; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int column = column0 + 8 * n + lane_column() + e;
            if (column < p.head_dim_v) part[row * p.head_dim_v + column] = o[m][n][2 * r + e] * factor;
          }
        continue;
      }
      if (row >= w.stored) continue;
      const bool attends = row < w.count;
      const int position = (w.first + row) / p.group, head = w.head_k * p.group + (w.first + row) - position * p.group;
      factor *= final_factor(p, sum);
      const bool seen = attends && sum != 0.f;
      char* out = p.out.data + w.q_batch * p.out.batch + (w.q_first + position) * p.out.row + head * p.out.head;
#pragma unroll
      for (int n = 0; n < Traits::kDimV / 8; ++n) {
        const int column = column0 + 8 * n + lane_column();
        if (column >= p.head_dim_v) continue;
        store_pair<Element>(out + column * Element::kBytes, seen ? o[m][n][2 * r] * factor : 0.f, seen ? o[m][n][2 * r + 1] * factor : 0.f,
                            column + 1 < p.head_dim_v);
      }
      if (p.lse && threadIdx.x % 4 == 0 && w.column_part == 0)
        p.lse[w.q_batch * p.lse_batch + head * p.lse_head + (w.q_first + position) * p.lse_row] = attends ? final_lse(max, sum) : -INFINITY;
    }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocks) forward_kernel(const __grid_constant__ ForwardParams p) {
  extern __shared__ __align__(128) char shared[];
  // In shared memory, for registers are scarce.
  __shared__ Work w;
  if (threadIdx.x < 32) {
    const Work own = find_work<Traits::kTileM>(p, blockIdx.x);
    if (threadIdx.x == 0) w = own;
  }
  __syncthreads();
  if (w.clear >= 0) {
    if (w.split == 0 && w.column_part == 0) clear_rows<Traits>(p, w);
    return;
  }
  if (w.stored == 0) return;

  const uint32_t base = ptx::shared_address(shared);
  const int first = threadIdx.x / 32 * 16 * Traits::kM + threadIdx.x % 32 / 4;
  LaneRows<Traits::kM> rows;
  if (Traits::kGeneral) rows = LaneRows<Traits::kM>(p, w, first);
  float o[Traits::kM][Traits::kDimV / 8][4] = {};
  SoftmaxState<Traits::kM> state;
  const KeyRange keys = find_keys<Traits::kTileN>(p, w);
  if (keys.begin < keys.end)
    Block<Traits>{p,
                  w,
                  base,
                  base + Traits::kStagesQ * Traits::kQBytes,
                  base + Traits::kStagesQ * Traits::kQBytes + Traits::kStagesK * Traits::kKBytes,
                  base + Traits::kOperandBytes}
        .attend(keys, rows, first, o, state);
  finish_rows<Traits>(p, w, rows, first, o, state);
}

}  // namespace attile::cuda::generic
