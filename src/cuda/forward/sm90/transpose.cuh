// V for the products of E4m3, which take both operands with the contracted dimension contiguous: [batch][head][dim][keys], keys padded with zeros
// to a multiple of 128. The keys of every 16 are put in the order in which a thread's scores lie in the accumulator layout, so that P needs no
// shuffle: place 4 q + b holds key 8 (b / 2) + 2 q + b % 2 (softmax.cuh's pack_p).
// Cost: V read and written once, 1 byte an element: at 8192 keys two percent of the attention.
#pragma once

#include "cuda/forward/sm90/instances.cuh"

namespace attile::cuda::sm90 {

// The packed sequence whose values lie at 128 keys `piece` of the transposed ones, see transposed_begin.
__device__ inline int sequence_of_piece(const Lengths& keys, int sequences, int piece) {
  int low = 0, high = sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (transposed_begin(keys.begin(middle), middle) <= piece * kTransposedKeys ? low : high) = middle;
  }
  return low;
}

// A block: 128 keys of a (batch, head).
template <int Dv>
__global__ void __launch_bounds__(256) transpose_kernel(TransposeParams p) {
  __shared__ uint32_t tile[kTransposedKeys][Dv / 4 + 1];
  const int pieces = static_cast<int>(p.to_row / kTransposedKeys), plane = static_cast<int>(blockIdx.x) / pieces;
  const int piece = static_cast<int>(blockIdx.x) % pieces, head = plane % p.heads, batch = plane / p.heads;
  const int sequence = p.keys.packed ? sequence_of_piece(p.keys, p.sequences, piece) : batch, row0 = p.keys.begin(sequence);
  const int key0 = piece * kTransposedKeys - (p.keys.packed ? transposed_begin(row0, sequence) : 0), length = p.keys.length(sequence);
  const char* from = p.v + batch * p.batch + head * p.head + row0 * p.row;
  for (int i = threadIdx.x; i < kTransposedKeys * (Dv / 16); i += 256) {
    const int key = i / (Dv / 16), c = i % (Dv / 16);
    uint4 x = make_uint4(0, 0, 0, 0);
    if (key0 + key < length && 16 * c < p.head_dim_v) x = __ldg(reinterpret_cast<const uint4*>(from + (key0 + key) * p.row + c * 16));
    tile[key][4 * c] = x.x, tile[key][4 * c + 1] = x.y, tile[key][4 * c + 2] = x.z, tile[key][4 * c + 3] = x.w;
  }
  __syncthreads();
  uint8_t* to = p.to + int64_t(plane) * Dv * p.to_row + piece * kTransposedKeys;
  for (int i = threadIdx.x; i < Dv / 4 * 8; i += 256) {  // 16 keys of 4 columns; the 16s fastest: 128 contiguous bytes
    const int group = i % 8, c = i / 8;
    uint32_t w[16];
#pragma unroll
    for (int k = 0; k < 16; ++k) w[k] = tile[16 * group + k][c];
#pragma unroll
    for (int d = 0; d < 4; ++d) {
      uint32_t x[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const uint32_t low = __byte_perm(w[2 * q], w[2 * q + 1], d | (4 + d) << 4);
        const uint32_t high = __byte_perm(w[8 + 2 * q], w[8 + 2 * q + 1], d | (4 + d) << 4);
        x[q] = __byte_perm(low, high, 0x5410);
      }
      *reinterpret_cast<uint4*>(to + (4 * c + d) * p.to_row + 16 * group) = make_uint4(x[0], x[1], x[2], x[3]);
    }
  }
}

}  // namespace attile::cuda::sm90
