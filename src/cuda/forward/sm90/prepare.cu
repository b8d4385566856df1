// What is queued before the main kernel.
#include "cuda/device.hpp"
#include "cuda/forward/sm90/ranges.cuh"
#include "cuda/forward/sm90/transpose.cuh"

namespace attile::cuda::sm90 {
namespace {

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

void find_segment_tiles(const SegmentParams& segments, int batch, int seqlen_q, int seqlen_k, int m_tiles, int tile_m, int tile_n, int4* tiles,
                        unsigned* counter, void* stream) {
  segment_tiles_kernel<<<static_cast<unsigned>(m_tiles * batch), kRangeThreads, 0, stream_of(stream)>>>(segments, seqlen_q, seqlen_k, m_tiles, tile_m, tile_n,
                                                                                                       tiles, counter);
  check_launch("launching segment_tiles");
}

void find_mask_bits(const MaskBytes& mask, int words, uint32_t* bits, void* stream) {
  const int64_t pieces = int64_t(mask.batches) * mask.heads * mask.rows * words * 2;
  mask_bits_kernel<<<static_cast<unsigned>((pieces + 255) / 256), 256, 0, stream_of(stream)>>>(mask, words, bits, pieces);
  check_launch("launching mask_bits");
}

void find_mask_tiles(const uint32_t* bits, int planes, int rows, int words, int m_tiles, int tile_m, int tile_n, int n_tiles, int4* tiles,
                     unsigned* counter, void* stream) {
  mask_tiles_kernel<<<static_cast<unsigned>(m_tiles * planes), kRangeThreads, 0, stream_of(stream)>>>(bits, rows, words, m_tiles, tile_m, tile_n, n_tiles,
                                                                                                     tiles, counter);
  check_launch("launching mask_tiles");
}

void sum_sinks(const SinkLists& sinks, int heads, float* sums, void* stream) {
  sinks_kernel<<<static_cast<unsigned>((heads + 127) / 128), 128, 0, stream_of(stream)>>>(sinks, heads, sums);
  check_launch("launching sinks");
}

void transpose_values(const TransposeParams& p, int batch, void* stream) {
  const unsigned blocks = static_cast<unsigned>(p.to_row / kTransposedKeys * p.heads * batch);
  if (p.dim_v == 64) {
    transpose_kernel<64><<<blocks, 256, 0, stream_of(stream)>>>(p);
  } else if (p.dim_v == 128) {
    transpose_kernel<128><<<blocks, 256, 0, stream_of(stream)>>>(p);
  } else {
    transpose_kernel<256><<<blocks, 256, 0, stream_of(stream)>>>(p);
  }
  check_launch("launching transpose");
}

}  // namespace attile::cuda::sm90
