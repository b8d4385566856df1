// An output tile to memory: straight from registers, or through its own query rows' shared memory.
#pragma once

#include "cuda/forward/sm90/addresses.cuh"
#include "cuda/forward/sm90/params.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/tma.cuh"

namespace attile::cuda::sm90 {

// Writes 64 x Dv floats as 16-bit ones: the four threads of a row transpose 4 x 4 words so that each has 16 contiguous bytes. line_of: where a row
// of the 64 goes, or null. kWhole: these begin on 16 bytes, and each is there or not; else bytes go one by one.
template <class Element, bool kWhole, int kRegs, class LineOf>
__device__ __forceinline__ void store_rows(const float (&o)[kRegs], const float (&factor)[2], const Params& p, LineOf line_of) {
  const int lane = threadIdx.x % 32, quad = lane % 4;
  const int row = threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    char* const begin = line_of(row + 8 * r);
    char* const line = begin + quad * 16;
    const int columns = begin ? p.head_dim_v - 8 * quad : 0;
#pragma unroll
    for (int c = 0; c < kRegs / 16; ++c) {  // 32 columns
      uint32_t w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) w[i] = Element::pack(o[16 * c + 4 * i + 2 * r] * factor[r], o[16 * c + 4 * i + 2 * r + 1] * factor[r]);
#pragma unroll
      for (int step = 1; step <= 2; step *= 2) {
        const bool high = quad & step;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (i & step) continue;
          const uint32_t got = __shfl_xor_sync(~0u, high ? w[i] : w[i + step], step);
          (high ? w[i] : w[i + step]) = got;
        }
      }
      if constexpr (kWhole) {
        if (32 * c < columns) *reinterpret_cast<uint4*>(line + 64 * c) = make_uint4(w[0], w[1], w[2], w[3]);
      } else {
#pragma unroll
        for (int i = 0; i < 16; ++i)
          if (32 * c + i / 2 < columns) line[64 * c + i] = static_cast<char>(w[i / 4] >> 8 * (i % 4));
      }
    }
  }
}

// One branch for all: inside, it would cost a tenth of the speed.
template <class Element, int kRegs, class LineOf>
__device__ __forceinline__ void store_out(const float (&o)[kRegs], const float (&factor)[2], const Params& p, LineOf line_of) {
  if (p.out_aligned && p.head_dim_v % 8 == 0) store_rows<Element, true>(o, factor, p, line_of);
  else store_rows<Element, false>(o, factor, p, line_of);
}

// The same through shared memory (this warpgroup's 64 query rows at `rows`, swizzled as Q was) and TMA, which leaves out rows and columns that do
// not exist. The caller's thread 0 waits for the copy before that memory is used again. Rows that TMA cannot write are copied by the threads.
// first: the position of the first row.
template <class T, int kRegs, class LineOf>
__device__ __forceinline__ void store_out_by_q(const float (&o)[kRegs], const float (&factor)[2], uint32_t rows, const Params& p, const Work& w,
                                               int first, LineOf line_of, int barrier) {
  using Element = typename T::Element;
  const int lane = threadIdx.x % 32;
  const uint32_t line = rows + (threadIdx.x % 128 / 32 * 16 + lane % 16) * 128;
#pragma unroll
  for (int c = 0; c < kRegs / 8; ++c) {  // 16 columns
    uint32_t x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = Element::pack(o[8 * c + 2 * i] * factor[i % 2], o[8 * c + 2 * i + 1] * factor[i % 2]);
    ptx::stmatrix_x4(line + c / 4 * T::kTileM * 128 + ((c % 4 * 2 + lane / 16) ^ (lane % 8)) * 16, x[0], x[1], x[2], x[3]);
  }
  ptx::fence_async_proxy();
  ptx::named_barrier_sync(barrier, 128);
  const RowOrigin at = origin(p.out_steps, w.row0_q, w.seqlen_q, w.head, w.batch);
#pragma unroll
  for (int c = 0; c < T::kBlocksV; ++c)
    ptx::tma_store_5d_if(p.out_by_tma && threadIdx.x % 128 == 0, rows + c * T::kTileM * 128, &p.out_map, 64 * c, 0, at.first + first, at.a, at.b);
  ptx::tma_store_commit();
  if (!p.out_by_tma) {
    const auto place = [&](int row, int column) { return rows + column / 64 * T::kTileM * 128 + row * 128 + ((column % 64 / 8) ^ (row % 8)) * 16 + column % 8 * 2; };
    const bool whole = p.out_aligned && p.head_dim_v % 8 == 0;  // pieces of 8 elements, else of two
    const int each = whole ? 8 : 2, pieces = (p.head_dim_v + each - 1) / each;
#pragma unroll 1
    for (int i = threadIdx.x % 128; i < 64 * pieces; i += 128) {
      const int row = i / pieces, column = i % pieces * each;
      char* const line = line_of(row);
      if (!line) continue;
      char* const to = line + column * 2;
      if (whole) {
        *reinterpret_cast<uint4*>(to) = ptx::load_shared_16(place(row, column));
        continue;
      }
      const uint32_t two = ptx::load_shared(place(row, column));
      store_unaligned<uint16_t>(to, static_cast<uint16_t>(two));
      if (column + 1 < p.head_dim_v) store_unaligned<uint16_t>(to + 2, static_cast<uint16_t>(two >> 16));
    }
    ptx::named_barrier_sync(barrier, 128);
  }
}

}  // namespace attile::cuda::sm90
