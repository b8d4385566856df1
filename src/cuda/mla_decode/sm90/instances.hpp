// The compiled kernels; each file bf16_*.cu, f16_*.cu has some.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <span>

#include "cuda/mla_decode/sm90/params.hpp"

namespace attile::cuda::mla_sm90 {

// Arrays of 16-bit elements, or of bytes, as TMA sees them: [outer][rows][columns], strides in elements.
struct Matrix {
  const void* base;
  int64_t columns, rows, stride, outer, outer_stride;
  bool operator==(const Matrix&) const = default;
};
struct Arrays {
  Matrix ckv, kpe, q_nope, q_pe;
};

struct Instance {
  int latent, rope;                  // most columns; rope of heads: of all heads together
  bool head_rope, gathered, narrow;  // narrow: float8 latents
  int most_rows;                     // of queries (tokens x heads): above, bytes are not the limit and another instance is faster
  int block_n;                       // keys a block
  void (*launch)(const Params&, const Arrays&, void* stream);
};

// Of these that take a problem the first is the fastest.
std::span<const Instance> bf16_small();
std::span<const Instance> bf16_512();
std::span<const Instance> bf16_narrow();
std::span<const Instance> f16_small();
std::span<const Instance> f16_512();

// Boxes of box_rows x 64 columns, swizzled over 128 bytes; what lies past an edge reads as zero. promotion: bytes that L2 fetches at
// least, 128, or 256 where rows begin at their multiples.
CUtensorMap box_map(const Matrix& m, int box_rows, bool half, int promotion);
// Boxes of box_rows x `columns` bytes of a matrix of bytes: 128 are swizzled, others as they are.
CUtensorMap byte_map(const Matrix& m, int box_rows, int columns);

}  // namespace attile::cuda::mla_sm90
