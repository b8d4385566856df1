// Products of rows with the weights of latent attention, C[b, t, h] = A[b, t, h] W[h], rounded to the element type:
//
//   rebuild   K = latent w_kc[:, h] and V = latent w_vc[:, h] in one launch     A has one head, W is [depth, columns]
//   absorb    q' = q w_kc[:, h]^T                                              W is [columns, depth]: transposed
//             out = o w_vc[:, h]
#pragma once

#include <cstdint>

#include "core/dtype.hpp"
#include "cuda/generic/forward_params.hpp"

namespace attile::cuda::generic {

struct Projection {
  const char* weight;  // of the first head; its last dimension is contiguous
  int64_t weight_head, weight_row;
  int32_t weight_granule;
  Tensor c;
  int32_t columns, tiles;
};

// Which rows somebody will read.
enum class LiveRows : uint8_t { all, queries, keys };

struct Living {
  LiveRows live;
  Lengths q_lengths, k_lengths;
  int32_t sequences;
  int32_t left, right;  // the band of ForwardParams
  bool bottom_right;
};

struct ProjectParams {
  Tensor a;  // head stride 0: one for all
  int32_t batch, rows, heads, depth;
  int32_t first_head, group;  // head h has the weight of head (first_head + h) / group
  Projection projections[2];
  int32_t column_tiles;  // of both

  Living living;
};

struct ProjectInstance {
  int tile_m, tile_n;
  void (*launch)(const ProjectParams&, int64_t blocks, void* stream);
};

ProjectInstance project_bf16(bool transposed);
ProjectInstance project_f16(bool transposed);
ProjectInstance project_f32(bool transposed);

}  // namespace attile::cuda::generic
