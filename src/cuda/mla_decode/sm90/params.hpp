// What the kernels of this folder are told (Params), and what they find out first (Part): see plan.cuh.
#pragma once

#include <cstdint>

#include "core/dtype.hpp"

namespace attile::cuda::mla_sm90 {

constexpr int kMaxParts = 256, kMaxBatch = 1 << 14;

// A run of key blocks: request r0 from block b0 ... request r1 up to block b1 (exclusive); empty when r1 < r0. Its partial results: slot
// 2 * part for request r0, 2 * part + 1 for r1 when that is another one.
struct Part {
  int32_t r0, b0, r1, b1;
  int32_t left0;           // blocks of request r0 here
  int32_t before0;         // parts that have blocks of r0 before this one
  int32_t count0, count1;  // parts of request r0, of request r1
  int32_t first_slot0;     // the slot of r0's first part
  bool pair;               // this part and the cluster's other one are the two halves of one request, and nothing else
};

struct Indices {     // int32 or int64, of which the lower half is read; the stride in bytes
  const char* data;  // null: none
  int64_t stride;
};

struct Params {
  int32_t batch, heads, latent, rope;
  bool packed, causal;  // packed: tokens of all requests follow each other
  int32_t seqlen_q;     // most tokens of a request; all have as many where not packed
  int32_t q_tokens;     // of the view's token axis

  // Index arrays.
  Indices kv_lens, cu_seqlens_q, page_begin;
  int32_t kv_most;                 // the longest that shapes allow, and the length without kv_lens
  const char* page_table;          // null: a dense cache, request r is page r
  int64_t table_row, table_entry;  // bytes; of a wide entry the lower half is read
  int32_t table_entries;           // entries of the table that is one list
  int32_t page_size, pages;        // page_size of a dense cache: without end

  // Scores: s = q.k, with `reshape` s = softcap * tanh(raw_scale s / softcap) or raw_scale s; exponents are scale_log2 s.
  bool reshape;
  float raw_scale, softcap, scale_log2;
  float ckv_scale;    // of float8 latents
  const char* sinks;  // null: none
  int64_t sink_head, sink_next;
  DType sink_dtype;
  int32_t sink_count;

  // Rows that are read and written by pointer; strides in elements.
  const void *ckv, *kpe;
  int64_t ckv_page, kpe_page;
  int32_t ckv_row, kpe_row;
  char* out;
  int64_t out_batch, out_token, out_head;
  bool out_aligned;  // rows begin at multiples of 16 bytes
  float* lse;        // null: not wanted
  int64_t lse_batch, lse_head, lse_token;
  float lse_scale;  // from base 2

  // The workspace.
  int32_t parts, tiles, block_n;  // the grid; keys a block
  int32_t parts_a_request, requests_a_part;  // where all are as long
  float* sink_log2;               // [heads]: log2 of the sum of a head's sinks; null: none
  int32_t* arrived;               // [batch][tiles][half]: how many parts have left their partial result
  float* out_parts;               // [2 * parts][seqlen_q * heads][latent]
  float* lse_parts;               // [half][2 * parts][seqlen_q * heads], base 2
  bool clusters;                  // parts 2 i and 2 i + 1 are a cluster
};

}  // namespace attile::cuda::mla_sm90
