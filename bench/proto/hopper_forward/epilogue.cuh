// An output tile to memory: straight from registers, or through its own query rows' shared memory by TMA.
#pragma once

#include "params.cuh"

// Writes 64 x Dv floats as 16-bit ones: the four threads of a row transpose 4 x 4 words so that each stores 16 contiguous bytes.
template <class Element, int kRegs>
__device__ __forceinline__ void store_out(const float (&o)[kRegs], const float (&factor)[2], Element* out, int64_t row_stride,
                                          int rows_left) {
  const int lane = threadIdx.x % 32, quad = lane % 4;
  const int row = threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    Element* line = out + (row + 8 * r) * row_stride + quad * 8;
#pragma unroll
    for (int c = 0; c < kRegs / 16; ++c) {  // 32 columns
      uint32_t w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        w[i] = ptx::pack<Element>(o[16 * c + 4 * i + 2 * r] * factor[r], o[16 * c + 4 * i + 2 * r + 1] * factor[r]);
#pragma unroll
      for (int step = 1; step <= 2; step *= 2) {
        const bool high = quad & step;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (i & step) continue;
          uint32_t got = __shfl_xor_sync(~0u, high ? w[i] : w[i + step], step);
          (high ? w[i] : w[i + step]) = got;
        }
      }
      if (row + 8 * r < rows_left) *reinterpret_cast<uint4*>(line + 32 * c) = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }
}

// The same through shared memory (this warpgroup's 64 query rows, swizzled as Q was) and TMA, which leaves out rows that do not
// exist. The caller's thread 0 waits for the copy before that memory is used again.
template <class T, int kRegs>
__device__ __forceinline__ void store_out_tma(const float (&o)[kRegs], const float (&factor)[2], uint32_t rows, const CUtensorMap* map,
                                              const Work& w, int first_row, bool is_packed, int barrier) {
  using Element = typename T::Element;
  const int lane = threadIdx.x % 32;
  const uint32_t line = rows + (threadIdx.x % 128 / 32 * 16 + lane % 16) * 128;
#pragma unroll
  for (int c = 0; c < kRegs / 8; ++c) {  // 16 columns
    uint32_t x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = ptx::pack<Element>(o[8 * c + 2 * i] * factor[i % 2], o[8 * c + 2 * i + 1] * factor[i % 2]);
    ptx::store_matrix_x4(line + c / 4 * T::kTileM * 128 + ((c % 4 * 2 + lane / 16) ^ (lane % 8)) * 16, x[0], x[1], x[2], x[3]);
  }
  ptx::fence_async_proxy();
  ptx::named_barrier_sync(barrier, 128);
  const RowOrigin origin = row_origin<T>(is_packed, w.batch, w.row0_q, w.seqlen_q);
#pragma unroll
  for (int c = 0; c < T::kBlocksV; ++c)
    ptx::tma_store_5d_if(threadIdx.x % 128 == 0, rows + c * T::kTileM * 128, map, 64 * c, origin.first + first_row, w.head,
                         origin.back, origin.x);
  ptx::tma_store_commit();
}
