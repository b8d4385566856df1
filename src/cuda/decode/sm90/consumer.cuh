// The warps that compute. Of a tile a warp has 16 query rows and kKeys keys; Q, S, P and O stay in its registers, and what its keys give is
// merged with the other warps' when the unit's tiles here are over (output.cuh).
//
//   S = Q K^T;  softmax as of generic/softmax.cuh;  O = alpha O + P V
#pragma once

#include "cuda/decode/sm90/output.cuh"
#include "cuda/generic/softmax.cuh"

namespace attile::cuda::decode_sm90 {

// A tile is boxes of 64 columns, rows of 128 bytes whose 16-byte pieces are swizzled: piece c of row r lies at c ^ r % 8. Where a lane reads
// the piece `half` of its row, column step 0; step s of 32 bytes: ^ 32 s.
__device__ __forceinline__ uint32_t swizzled_lane(int row, int half) { return row * 128 + ((half ^ row % 8) << 4); }
template <class T>
__device__ __forceinline__ uint32_t step_at(uint32_t lane_at, int step) {
  return (lane_at ^ step % 4 * 32) + step / 4 * T::kBoxBytes;
}

// The A operand of S: 16 rows, all dims.
template <class T>
struct Queries {
  uint32_t a[T::kDim / 16][4];

  __device__ __forceinline__ void load(const Params& p, int b, int h, const generic::LaneRows<1>& rows, int first_row) {
    const char* at[2];
#pragma unroll
    for (int r = 0; r < 2; ++r)
      at[r] = first_row + 8 * r < p.rows ? p.f.q.data + b * p.f.q.batch + rows.position[0][r] * p.f.q.row +
                                               (static_cast<int64_t>(h) * p.f.group + rows.head[0][r]) * p.f.q.head + threadIdx.x % 4 * 4
                                         : nullptr;
#pragma unroll
    for (int step = 0; step < T::kDim / 16; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[step][i] = at[i % 2] ? __ldg(reinterpret_cast<const uint32_t*>(at[i % 2] + step * 32 + i / 2 * 16)) : 0;
  }
};

template <class T>
__device__ __forceinline__ void scores(float (&s)[1][T::kStep / 8][4], const Queries<T>& q, uint32_t keys) {
  const int lane = threadIdx.x % 32;
  const uint32_t at = keys + swizzled_lane(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
  for (int step = 0; step < T::kDim / 16; ++step)
#pragma unroll
    for (int n = 0; n < T::kStep / 16; ++n) {
      uint32_t k[4];
      ptx::ldmatrix_x4(k, step_at<T>(at, step) + n * 2048);
      T::Element::mma(s[0][2 * n], q.a[step], k[0], k[1]);
      T::Element::mma(s[0][2 * n + 1], q.a[step], k[2], k[3]);
    }
}

// Both keys of a lane's word that lie in [begin, end): what lies outside may be anything, and zero times that is not zero.
__device__ __forceinline__ uint32_t existing(int key, int begin, int end) {
  return (key >= begin && key < end ? 0xffffu : 0u) | (key + 1 >= begin && key + 1 < end ? 0xffff0000u : 0u);
}

// key: the first.
template <class T>
__device__ __forceinline__ void add_values(float (&o)[1][T::kDim / 8][4], const float (&p)[1][T::kStep / 8][4], uint32_t values, int key,
                                           const Keys& keys) {
  const int lane = threadIdx.x % 32;
  const uint32_t at = values + swizzled_lane(lane % 16, lane / 16);
#pragma unroll
  for (int n = 0; n < T::kStep / 16; ++n) {
    uint32_t a[4], mask[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = T::Element::pack(p[0][2 * n + i / 2][2 * (i % 2)], p[0][2 * n + i / 2][2 * (i % 2) + 1]);
#pragma unroll
    for (int i = 0; i < 2; ++i) mask[i] = existing(key + 16 * n + 8 * i + generic::lane_column(), keys.begin, keys.end);
#pragma unroll
    for (int step = 0; step < T::kDim / 16; ++step) {
      uint32_t v[4];
      ptx::ldmatrix_x4_trans(v, step_at<T>(at, step) + n * 2048);
      T::Element::mma(o[0][2 * step], a, v[0] & mask[0], v[1] & mask[1]);
      T::Element::mma(o[0][2 * step + 1], a, v[2] & mask[0], v[3] & mask[1]);
    }
  }
}

__device__ __forceinline__ float reshaped(const generic::ForwardParams& f, float s) {
  s *= f.scale;
  return f.softcap == 0.f ? s : f.softcap * tanhf(s / f.softcap);
}

template <class T>
__device__ __forceinline__ void consume(const Params& p, SharedStorage<T>& sm) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_row = warp % T::kRowWarps * 16 + lane / 4, first_key = warp / T::kRowWarps * T::kKeys;
  generic::LaneRows<1> rows;  // heads: within the group
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = min(first_row + 8 * r, p.rows - 1);
    rows.position[0][r] = row / p.f.group;
    rows.head[0][r] = row - rows.position[0][r] * p.f.group;
  }
  const int last_position = p.f.q_lengths.rows - 1;
  Cursor cursor(sm.barriers);
  Queries<T> q;
  for (Walk<T::kN> w(p.f, sm.part); w.more(); w.next()) {
    q.load(p, w.b, w.h, rows, first_row);
    const int seen_by_all_begin = w.keys.band.begin(last_position), seen_by_all_end = w.keys.band.end(0);
    float o[1][T::kDim / 8][4] = {};
    generic::SoftmaxState<1> state;
#pragma unroll 1
    for (int tile = w.first_tile(), end = tile + w.tiles; tile < end; ++tile) {
      Cursor keys = cursor;
      cursor.next();
      Cursor values = cursor;
      cursor.next();
      keys.wait_full();
#pragma unroll 1
      for (int i = 0; i < T::kKeys; i += T::kStep) {
        const int key = tile * T::kN + first_key + i;
        const uint32_t offset = (first_key + i) * 128;
        float s[1][T::kStep / 8][4] = {};
        scores<T>(s, q, ptx::shared_address(sm.ring[keys.slot]) + offset);
        if (i + T::kStep == T::kKeys) keys.release(p.by_lanes());
        if (p.reshape)
          generic::for_each_pair<1, T::kStep>([&](int m, int r, int n) {
            s[m][n][2 * r] = reshaped(p.f, s[m][n][2 * r]);
            s[m][n][2 * r + 1] = reshaped(p.f, s[m][n][2 * r + 1]);
          });
        if (key < seen_by_all_begin || key + T::kStep > seen_by_all_end) generic::apply_band<1, T::kStep>(w.keys.band, rows, key, s);
        float alpha[1][2], taken[1][2], sum[1][2] = {};  // taken: from the scores in base 2
        generic::move_maximum(s, state, p.f.scale_log2, p.f.lazy, alpha, taken);
#pragma unroll
        for (int step = 0; step < T::kStep / 16; ++step) generic::exponentiate(s, sum, p.f.scale_log2, taken, step, 0, 1);
        state.sum[0][0] += sum[0][0], state.sum[0][1] += sum[0][1];
        generic::scale_rows(o, alpha);
        if (i == 0) values.wait_full();
        add_values<T>(o, s, ptx::shared_address(sm.ring[values.slot]) + offset, key, w.keys);
      }
      values.release(p.by_lanes());
    }
    const int slot = w.whole() ? -1 : 2 * static_cast<int>(blockIdx.x) + (w.b != sm.part.b || w.h != sm.part.h);
    finish<T>(p, sm, o, state, w.b, w.h, slot);
  }
}

}  // namespace attile::cuda::decode_sm90
