// Absorbed latent attention on mma.sync, for sm_80 and newer: a block has 16 kM query rows (query tokens x heads) of one sequence and walks
// over tiles of keys, each loaded once into a ring in shared memory, where it is both K and V.
//
//   for tiles:  S = Q_nope ckv^T + Q_pe kpe^T     a warp: 16 rows, 16 keys, a slice of the dims; slices meet in shared memory
//               P = softmax                       kRowLanes threads a row; sum of the slices, a head's own rope, cap, masks
//               O = alpha O + P ckv               a warp: all rows, every eighth group of 16 columns; O stays in registers
//
// Cost of a tile of N keys: N (L + R) elements from memory, asked for `stages` - 1 tiles ahead; 2 M N (2 L + R) operations; three barriers.
// A rope key for each head takes no part in the products: its thread multiplies it straight from memory.
#pragma once

#include "cuda/generic/forward_kernel.cuh"
#include "cuda/mla_decode/generic/decode_keys.cuh"
#include "cuda/mla_decode/generic/decode_products.cuh"

namespace attile::cuda::latent {

using generic::kLog2E;

// e^x
__device__ __forceinline__ float exponential(float x) { return ptx::exp2_approx(x * kLog2E); }
// What a maximum is subtracted as: -inf where nothing has been seen, which is no number to subtract.
__device__ __forceinline__ float origin_of(float max) { return max == -INFINITY ? 0.f : max; }

// Elements of one row of a rope key against those of a query, 16 bytes at a time.
template <class Element>
__device__ __forceinline__ float multiply_rope(const char* key, uint32_t query, int bytes, int granule) {
  float sum = 0.f;
  for (int at = 0; at < bytes; at += 16) {
    uint32_t word[4];
    if (granule == 16) {
      const uint4 x = *reinterpret_cast<const uint4*>(key + at);
      word[0] = x.x, word[1] = x.y, word[2] = x.z, word[3] = x.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) word[i] = load_word(key + at + 4 * i, 4, granule);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t q = ptx::load_shared(query + at + 4 * i);
      if constexpr (Element::kBytes == 2) {
        const float2 x = Element::unpack(word[i]), y = Element::unpack(q);
        sum = fmaf(x.x, y.x, sum);
        sum = fmaf(x.y, y.y, sum);
      } else {
        sum = fmaf(__uint_as_float(word[i]), __uint_as_float(q), sum);
      }
    }
  }
  return sum;
}

template <class Traits>
struct DecodeBlock {
  using Element = typename Traits::Element;
  static constexpr int kM = Traits::kM, kN = Traits::kTileN;

  const DecodeParams& p;
  const Work& w;
  char* shared;
  uint32_t base;

  __device__ __forceinline__ float* scores() const { return reinterpret_cast<float*>(shared + p.layout.scores); }
  __device__ __forceinline__ float* rows() const { return reinterpret_cast<float*>(shared + p.layout.rows); }

  // The warp's 16 x 16 scores over its slice of the dims, to shared memory.
  __device__ __forceinline__ void multiply_keys(uint32_t keys) const {
    const Layout& l = p.layout;
    const int warp = threadIdx.x / 32, m = warp % kM, n = warp / kM % (kN / 16), slice = warp / (kM * (kN / 16));
    const int latents = l.latent_bytes / 128, parts = latents + l.rope_bytes / 128;
    const int begin = parts * slice / Traits::kSlices, end = parts * (slice + 1) / Traits::kSlices;
    const uint32_t q = base + 16 * m * l.q_stride + lane_offset_a(l.q_stride), k = keys + 16 * n * l.k_stride + lane_offset_b(l.k_stride);
    float s[1][2][4] = {};
    for (int part = begin; part < end; ++part) {
      if (part == latents) scale(s);
      scores_product<Element, 1, 16, 4, false, 0>(s, q + 128 * part, k + 128 * part, 4, true);
    }
    if (end <= latents) scale(s);
    const int lane = threadIdx.x % 32;
    float* to = scores() + (slice * Traits::kTileM + 16 * m + lane / 4) * Traits::kScoreStride + 16 * n + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        *reinterpret_cast<float2*>(to + 8 * r * Traits::kScoreStride + 8 * i) = make_float2(s[0][i][2 * r], s[0][i][2 * r + 1]);
  }
  __device__ __forceinline__ void scale(float (&s)[1][2][4]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) s[0][i / 4][i % 4] *= p.ckv_scale;
  }

  // The thread's keys of its row: scores to weights, the state of the row, and by what its sums are to be multiplied.
  __device__ __forceinline__ void weigh(int key, int stage, int position, int head, float& max, float& sum) const {
    const Layout& l = p.layout;
    const int row = threadIdx.x / Traits::kRowLanes, lane = threadIdx.x % Traits::kRowLanes;
    const int begin = w.band.begin(position), end = w.band.end(position);
    float x[Traits::kRowKeys], top = -INFINITY;
#pragma unroll
    for (int i = 0; i < Traits::kRowKeys; ++i) {
      const int n = lane + Traits::kRowLanes * i;
      float s = 0.f;
#pragma unroll
      for (int slice = 0; slice < Traits::kSlices; ++slice) s += scores()[(slice * Traits::kTileM + row) * Traits::kScoreStride + n];
      const bool seen = key + n >= begin && key + n < end;
      if (p.head_rope && seen) {
        const char* at = reinterpret_cast<const char* const*>(shared + l.places)[stage * kN + n];
        if (at)
          s += multiply_rope<Element>(at + head * p.kpe.head, base + row * l.q_stride + l.latent_bytes, p.rope * Element::kBytes,
                                      p.kpe.granule);
      }
      s *= p.scale;
      if (p.softcap != 0.f) s = p.softcap * tanhf(s / p.softcap);
      x[i] = seen ? s : -INFINITY;
      top = fmaxf(top, x[i]);
    }
#pragma unroll
    for (int d = Traits::kRowLanes / 2; d > 0; d /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
    const float now = fmaxf(max, top), origin = origin_of(now), alpha = exponential(max - origin);
    max = now;
    sum *= alpha;
    char* to = shared + l.weights + row * Traits::kWeightStride;
#pragma unroll
    for (int i = 0; i < Traits::kRowKeys; ++i) {
      const float weight = exponential(x[i] - origin);
      sum += weight;
      const int n = lane + Traits::kRowLanes * i;
      if constexpr (Element::kBytes == 2) {
        *reinterpret_cast<uint16_t*>(to + 2 * n) = static_cast<uint16_t>(Element::pack(weight, 0.f));
      } else {
        *reinterpret_cast<float*>(to + 4 * n) = weight;
      }
    }
    if (lane == 0) rows()[row] = alpha;
  }

  template <class F>
  __device__ __forceinline__ void for_each_row(F f) const {  // f(m, r, row) of the lane's rows of o
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) f(m, r, 16 * m + static_cast<int>(threadIdx.x) % 32 / 4 + 8 * r);
  }

  __device__ __forceinline__ void rescale(float (&o)[kM][Traits::kGroups][2][4]) const {
    for_each_row([&](int m, int r, int row) {
      const float alpha = rows()[row];
      if (alpha == 1.f) return;
#pragma unroll
      for (int g = 0; g < Traits::kGroups; ++g)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[m][g][i / 2][2 * r + i % 2] *= alpha;
    });
  }

  __device__ __forceinline__ static void wait_for_tile(int stages) {
    if (stages >= 5) {
      ptx::cp_async_wait_groups<3>();
    } else if (stages == 4) {
      ptx::cp_async_wait_groups<2>();
    } else if (stages == 3) {
      ptx::cp_async_wait_groups<1>();
    } else {
      ptx::cp_async_wait_groups<0>();
    }
  }

  // O over the keys of the range, and of the thread's row the maximum and its part of the sum.
  __device__ __forceinline__ void attend(const generic::KeyRange& range, float (&o)[kM][Traits::kGroups][2][4], float& max,
                                         float& sum) const {
    const Layout& l = p.layout;
    const int own = w.first + min(static_cast<int>(threadIdx.x) / Traits::kRowLanes, w.count - 1);
    const int position = own / p.group, head = own - position * p.group;
    const Keys<Traits> keys(p, w);
    load_queries<Traits>(p, w, base);
    const int ahead = max_ahead(l.stages);
    int next = range.begin, slot = 0;  // the tile to be asked for next, and where it will lie
    int page = keys.page(next);
    const auto load_next = [&] {
      if (next < range.end) {
        keys.load(next, page, shared, base, slot);
        next += kN;
        page = next < range.end ? keys.page(next) : -1;
        slot = slot + 1 == l.stages ? 0 : slot + 1;
      }
      ptx::cp_async_commit();
    };
    for (int i = 0; i < ahead; ++i) load_next();
    int stage = 0;
    for (int key = range.begin; key < range.end; key += kN) {
      wait_for_tile(l.stages);
      __syncthreads();
      if (l.stages > 1) load_next();
      const uint32_t tile = base + l.ring + stage * l.tile;
      multiply_keys(tile);
      __syncthreads();
      weigh(key, stage, position, head, max, sum);
      __syncthreads();
      rescale(o);
      weigh_values<Traits>(o, base + l.weights, tile, l.k_stride, p.head_dim_v);
      if (l.stages == 1) {
        __syncthreads();
        load_next();
      }
      stage = stage + 1 == l.stages ? 0 : stage + 1;
    }
  }
  __device__ __forceinline__ static int max_ahead(int stages) { return stages > 1 ? stages - 1 : 1; }

  // What each row is to be multiplied by; lse, or of a split maximum and sum.
  __device__ __forceinline__ void finish_row(float max, float sum) const {
#pragma unroll
    for (int d = Traits::kRowLanes / 2; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    const int row = threadIdx.x / Traits::kRowLanes;
    __syncthreads();  // rows() is done with
    if (threadIdx.x % Traits::kRowLanes != 0) return;
    const bool attends = row < w.count;
    const int own = w.first + row, position = own / p.group, head = own - position * p.group;
    float factor = 1.f;
    if (p.sinks && attends && w.split == 0) {
      float top = max;
      for (int n = 0; n < p.sink_count; ++n) top = fmaxf(top, generic::read_natural_sink(p, head, n));
      const float origin = origin_of(top);
      factor = exponential(max - origin);
      sum *= factor;
      for (int n = 0; n < p.sink_count; ++n) sum += exponential(generic::read_natural_sink(p, head, n) - origin);
      max = top;
    }
    if (p.splits > 1) {
      float* part = this->part() + Traits::kTileM * p.head_dim_v + row;
      part[0] = max;
      part[Traits::kTileM] = sum;
    } else {
      factor = !attends || sum == 0.f ? 0.f : factor / sum;
      if (p.lse && row < w.stored)
        p.lse[w.q_batch * p.lse_batch + head * p.lse_head + (w.q_first + position) * p.lse_row] =
            attends ? log_of_sum(max, sum) * p.lse_scale : -INFINITY;
    }
    rows()[row] = factor * p.ckv_scale;
  }
  __device__ __forceinline__ static float log_of_sum(float max, float sum) { return sum == 0.f ? -INFINITY : origin_of(max) + logf(sum); }
  __device__ __forceinline__ float* part() const {
    return p.parts + (static_cast<int64_t>(w.unit) * p.splits + w.split) * generic::part_floats(Traits::kTileM, p.head_dim_v);
  }

  __device__ __forceinline__ void store(const float (&o)[kM][Traits::kGroups][2][4]) const {
    for_each_row([&](int m, int r, int row) {
      if (row >= w.stored) return;
      const int position = (w.first + row) / p.group, head = w.first + row - position * p.group;
      char* out = p.out.data + w.q_batch * p.out.batch + (w.q_first + position) * p.out.row + head * p.out.head;
      float* split = p.splits > 1 ? part() + row * p.head_dim_v : nullptr;
      const float factor = rows()[row];
#pragma unroll
      for (int g = 0; g < Traits::kGroups; ++g)
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const int column = 16 * (static_cast<int>(threadIdx.x) / 32 + Traits::kWarps * g) + 8 * n + generic::lane_column();
          if (column >= p.head_dim_v) continue;
          const float x = factor == 0.f ? 0.f : o[m][g][n][2 * r] * factor, y = factor == 0.f ? 0.f : o[m][g][n][2 * r + 1] * factor;
          if (split) {
            *reinterpret_cast<float2*>(split + column) = make_float2(x, y);
          } else {
            store_pair<Element>(out + column * Element::kBytes, x, y, true);
          }
        }
    });
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocks) mla_decode_kernel(const __grid_constant__ DecodeParams p) {
  extern __shared__ __align__(128) char shared[];
  __shared__ Work w;
  if (threadIdx.x < 32) {
    const Work own = generic::find_work<Traits::kTileM>(p, blockIdx.x);
    if (threadIdx.x == 0) w = own;
  }
  __syncthreads();
  if (w.clear >= 0) {
    if (w.split == 0) generic::clear_rows<Traits>(p, w);
    return;
  }
  if (w.stored == 0) return;
  const DecodeBlock<Traits> block{p, w, shared, ptx::shared_address(shared)};
  float o[Traits::kM][Traits::kGroups][2][4] = {};
  float max = -INFINITY, sum = 0.f;
  const generic::KeyRange keys = generic::find_keys<Traits::kTileN>(p, w);
  if (keys.begin < keys.end) block.attend(keys, o, max, sum);
  block.finish_row(max, sum);
  __syncthreads();
  block.store(o);
}

}  // namespace attile::cuda::latent
