// What the generic forward kernels are told: an AttentionProblem in the terms of a GPU. Strides and addresses are in bytes.
#pragma once

#include <cstdint>

#include "core/dtype.hpp"

namespace attile::cuda::generic {

// A [B, T, H, D] array whose last dimension is contiguous.
struct Tensor {
  char* data;
  int64_t batch, row, head;
  int32_t granule;  // every row begins at a multiple of it: 16, 4, 2 or 1
};

// int32 or int64 numbers.
struct Indices {
  const char* data;  // null: none
  int64_t stride;
  bool wide;
};

struct Lengths {
  Indices cu;    // begins, [batch + 1]
  Indices lens;  // or lengths, [batch]
  int32_t rows;  // of the token axis
  int32_t most;  // of a sequence, for a bias or mask may know fewer positions than lengths on the device say
  bool packed;
};

// A [B, Hq, Tq, Tk] array.
struct Elementwise {
  const char* data;  // null: none
  int64_t batch, head, row, key;
  DType dtype;
  bool pairs;       // two neighbouring keys from an even one can be read as one word
  int32_t granule;  // where `pairs`: every row begins at a multiple of it, 16, 4 or 2
};

// [B, T] ids.
struct Ids {
  const char* data;
  int64_t batch, row;
  bool wide;
};

struct ForwardParams {
  Tensor q, k, v, out;
  float* lse;                            // null: not wanted
  int64_t lse_batch, lse_head, lse_row;  // in elements
  Lengths q_lengths, k_lengths;
  int32_t batch, heads_k, group, head_dim, head_dim_v;

  // Pages: key j of sequence b is row j % page_size of page pages[b, j / page_size].
  Indices pages;
  int64_t pages_batch;
  int32_t page_size, page_count;

  float scale, scale_log2;  // softmax_scale; what takes finished scores to base 2
  float lazy;               // by how much, in base 2, scores may exceed the maximum before it moves
  int32_t left, right;      // band, at most kUnlimited
  bool bottom_right;
  bool exact;  // float32: three TF32 products, else one

  // Blocks: splits, then columns of v, then (tiles, heads, batch) or, where a bias serves the whole batch, (batch, tiles, heads).
  int32_t tiles, column_parts, splits;
  bool batch_first;
  float* parts;  // splits > 1: [block without split][split], see forward_join.cuh

  // The general variant's.
  Elementwise bias, mask;
  Ids q_ids, k_ids;
  const char* sinks;  // null: none
  int64_t sink_head, sink_next;
  DType sink_dtype;
  int32_t sink_count;
  float softcap;  // 0: none
  DType logits_dtype;
  bool dropout, unnormalized;
  uint64_t dropout_seed;
  uint32_t dropout_threshold;
  float dropout_scale;                     // 1 without dropout
  int32_t dropout_sequence, dropout_head;  // the problem's first in the whole

  static constexpr int32_t kUnlimited = 1 << 30;
};

}  // namespace attile::cuda::generic
