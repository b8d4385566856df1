// MlaDecodeProblem: absorbed latent attention over a cache is attention with one key head, whose keys are [ckv, kpe] and whose values
// are ckv:
//
//   s = softmax_scale * (q_nope.ckv + q_pe.kpe);  out = softmax(s) @ ckv
//
// So it is an AttentionProblem in which q is q_nope [B, Sq, H, L], k and v are ckv [B, Tk, 1, L] or [pages, page_size, 1, L], head_dim is
// L + R and head_dim_v is L, with the rope parts beside it. The rows of mla_decode_kernels() are given nothing else.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/kernel_table.hpp"
#include "core/problem.hpp"

namespace attile {

struct MlaDecodeProblem : AttentionProblem {
  View q_pe;  // [B, Sq, H, R]; absent: R = 0
  View kpe;   // [B, Tk, 1 or H, R], or [pages, page_size, 1 or H, R]
  int64_t latent = 0, rope = 0;
  bool head_rope = false;  // kpe has a rope key for each head

  // Where page_table is one list, [1, 1, 1, n], the pages of sequence b begin at page_begin[b]. Else it is [1, 1, B, max_pages].
  IndexView page_begin;
  double ckv_scale = 1;  // kFloat8Scales: what the elements of k, and v, are to be multiplied by
  double lse_scale = 1;  // of the lse that is written: 1, natural, or log2(e)

  // Entry n of sequence b in page_table.
  const char* page_entry(int64_t b, int64_t n) const {
    return page_begin ? page_table.at(0, 0, 0, page_begin[b] + n) : page_table.at(0, 0, b, n);
  }
};

inline const MlaDecodeProblem& mla_decode(const AttentionProblem& problem) { return static_cast<const MlaDecodeProblem&>(problem); }

// What a batch of sequences of any lengths over a paged cache is, apart from its arrays. On the host the index arrays are checked and
// copied; to a device those copies go once and serve many calls. Index arrays on a device stay the caller's, and are not read.
struct MlaDecodePlan {
  struct Indices {
    IndexView qo_indptr, kv_indptr, kv_lens, pages;
  };
  Indices indices;                          // on this device:
  int32_t device_type = 1, device_id = 0;
  Indices copies;                           // of indices on the host, on this CUDA device (-1: none):
  int32_t copies_id = -1;
  std::vector<int64_t> storage;             // of indices on the host
  int64_t heads = 0, latent = 0, rope = 0, page_size = 0;
  int64_t batch = 0;
  int64_t longest_k = 0;                    // what can be known of the rest on the host:
  int64_t longest_q = -1, queries = 0, largest_page = -1;
  DType dtype = DType::none;
  bool causal = false;
  double softmax_scale = 1;
};

// Fastest first; defined in cpu/mla_decode/kernels.cpp.
std::span<const Kernel> cpu_mla_decode_kernels();

}  // namespace attile
