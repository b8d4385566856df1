// What a row of queries contributes by itself: delta = sum_d dout out - dlse, with lse side by side for the other kernels, and the gradient
// of the sinks,
//
//   dsinks[n] = -sum_rows exp(sink[n] - lse) delta
#pragma once

#include "cuda/generic/backward_work.cuh"

namespace attile::cuda::generic {

template <class Element>
__device__ __forceinline__ float read_element(const char* at) {
  if constexpr (Element::kBytes == 4) {
    return __uint_as_float(load_unaligned<uint32_t>(at));
  } else {
    return Element::unpack(load_unaligned<uint16_t>(at)).x;
  }
}

// A warp a row of [q batch][head][row]; rows outside sequences are never used.
template <class Element>
__global__ void __launch_bounds__(kBackwardThreads) backward_rows(const __grid_constant__ BackwardParams p, int64_t count) {
  const int lane = threadIdx.x % 32, rows = p.f.q_lengths.rows;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kBackwardThreads / 32);
  for (int64_t at = blockIdx.x * (kBackwardThreads / 32) + threadIdx.x / 32; at < count; at += step) {
    const int row = static_cast<int>(at % rows), head = static_cast<int>(at / rows % p.heads_q),
              batch = static_cast<int>(at / rows / p.heads_q);
    if (p.f.q_lengths.packed) {
      if (p.f.batch == 0 || row >= read_index(p.f.q_lengths.cu, p.f.batch)) continue;
    } else {
      int first, length;
      sequence_rows(p.f.q_lengths, batch, first, length);
      if (row >= length) continue;
    }
    const char* out = p.f.out.data + batch * p.f.out.batch + row * p.f.out.row + head * p.f.out.head;
    const char* dout = p.dout.data + batch * p.dout.batch + row * p.dout.row + head * p.dout.head;
    float sum = 0.f;
    for (int d = lane; d < p.f.head_dim_v; d += 32)
      sum = fmaf(read_element<Element>(out + d * Element::kBytes), read_element<Element>(dout + d * Element::kBytes), sum);
#pragma unroll
    for (int d = 1; d < 32; d *= 2) sum += __shfl_xor_sync(~0u, sum, d);
    if (lane != 0) continue;
    p.delta[at] = sum - (p.dlse ? read_element<F32>(p.dlse + batch * p.dlse_batch + head * p.dlse_head + row * p.dlse_row) : 0.f);
    p.row_lse[at] = read_element<F32>(p.lse + batch * p.lse_batch + head * p.lse_head + row * p.lse_row);
  }
}

// A block a sink: n + count * head (head 0 for all where they are shared). In a fixed order.
static __global__ void __launch_bounds__(kBackwardThreads) backward_sinks(const __grid_constant__ BackwardParams p) {
  __shared__ float partial[kBackwardThreads];
  const int n = blockIdx.x % p.f.sink_count, own_head = blockIdx.x / p.f.sink_count;
  float sum = 0.f;
  for (int b = 0; b < p.f.batch; ++b)
    for (int h = p.sinks_shared ? 0 : own_head; h < (p.sinks_shared ? p.heads_q : own_head + 1); ++h) {
      const Pairing w = pairing_of(p, b, h);
      const float sink = read_sink(p.f, h, n);  // in base 2
      for (int i = threadIdx.x; i < w.seqlen_q; i += kBackwardThreads) {
        const float lse = lse_of(p, w, h, i);
        if (lse != -INFINITY) sum -= ptx::exp2_approx(sink - lse * kLog2E) * delta_of(p, w, h, i);
      }
    }
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 0.f;
  for (int i = 0; i < kBackwardThreads; ++i) sum += partial[i];
  give_number(p, p.dsinks, const_cast<char*>(p.dsinks.data) + own_head * p.dsinks.row + n * p.dsinks.key, sum);
}

}  // namespace attile::cuda::generic
