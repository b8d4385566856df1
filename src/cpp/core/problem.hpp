// AttentionProblem: the one description of what is to be computed. Views, sequences, scalars; no pointers to decide by, no
// device code. Made by the validator from public arguments, read by every kernel.
//
//   s = softmax_scale * q.k + bias;  s = softcap * tanh(s / softcap);  s = -inf where masked
//   p = exp(s - m) / (sum_j exp(s_j - m) + sum_n exp(sink_n - m));     out = dropout(p) @ v
#pragma once

#include <cstdint>

#include "core/mask.hpp"
#include "core/mla_problem.hpp"
#include "core/philox.hpp"
#include "core/sequences.hpp"
#include "core/view.hpp"

namespace attile {

// The optional fields in use. A kernel states the set that it honours; choose() refuses it for any other.
enum Option : uint64_t {
  kBias = 1 << 0,
  kAttentionMask = 1 << 1,
  kSegmentIds = 1 << 2,
  kSinks = 1 << 3,
  kCausal = 1 << 4,
  kWindow = 1 << 5,
  kSoftcap = 1 << 6,
  kDropout = 1 << 7,
  kUnnormalized = 1 << 8,
  kLogitsDtype = 1 << 9,
  kVarlenQ = 1 << 10,
  kVarlenK = 1 << 11,
  kLse = 1 << 12,
  kReducedPrecision = 1 << 13,
  kFloat8Scales = 1 << 14,
  kKvLens = 1 << 15,
  kPages = 1 << 16,
  kLatents = 1 << 17,
  kOptionCount = 18
};

inline constexpr const char* kOptionNames[kOptionCount] = {
    "bias",         "attention_mask",   "segment_ids",  "softmax_aux",   "causal",        "sliding_window", "logits_soft_cap", "dropout",
    "normalize_output=False", "logits_dtype", "cum_seqlens_q", "cum_seqlens_k", "lse", "precision", "float8 scales",
    "cache_seqlens", "page_table", "key_value (latents)"};

enum class Alignment : uint8_t { top_left, bottom_right };

struct AttentionProblem {
  const char* function = "flash_attention";  // in messages
  DType dtype = DType::none;                 // of q, k, v, out
  int32_t device_type = 1, device_id = 0;    // DLPack's: where all arrays are
  uint64_t options = 0;

  View q, k, v;            // [B, T, H, D]; B = 1 where packed
  View out;                // [B, Tq, Hq, Dv], bound later
  View lse;                // [B, Hq, Tq, 1], bound later; absent when not wanted
  Sequences q_seqs, k_seqs;
  View page_table;         // kPages: [1, 1, B, max_pages]; k and v are [pages, page_size, H, D], key j of sequence b lies in page
                           // page_table[b, j / page_size]; entries past the length are never read

  Latents latents;         // kLatents: what k and v are made of; they are absent then

  int64_t batch = 0, heads_q = 0, heads_k = 0, head_dim = 0, head_dim_v = 0;
  int64_t group = 1;  // heads_q / heads_k

  View bias;            // [B, Hq, Tq, Tk], zero strides where broadcast; indexed within the sequence. Where
                        // lengths are on a device, Nq and Nk may be shorter than a sequence: kernels clamp to shape[2], shape[3]
  View attention_mask;  // likewise; nonzero: attend
  View sinks;           // [1, 1, Hq, n]
  View q_ids, k_ids;    // [1, 1, B, T]; B = 1 where packed (index with batch_index and first_row + i)

  View q_scale, k_scale, v_scale;    // kFloat8Scales: float32 [1, 1, B, Hk]; absent: none, or a number that is in
  double qk_factor = 1, v_factor = 1;  // kFloat8Scales: the product of the numbers given for q and k, the one for v

  double softmax_scale = 1;
  double softcap = 0;  // kSoftcap
  Dropout dropout;     // kDropout
  DType logits_dtype = DType::none;  // kLogitsDtype: scores are rounded to it
  int precision = 0;                 // attile_precision

  bool causal = false;
  Alignment alignment = Alignment::top_left;
  int64_t window_left = Mask::kUnlimited, window_right = Mask::kUnlimited;  // kWindow

  bool has(Option option) const { return (options & option) != 0; }
  bool on_cuda() const { return device_type == 2; }
  int64_t page_size() const { return k.shape[1]; }  // kPages

  // The band of sequence b; on the host, so not for index arrays on a device.
  Mask mask(int64_t b) const {
    Mask m;
    m.seqlen_k = k_seqs.length(b);
    m.left = window_left;
    m.right = causal ? 0 : window_right;
    m.shift = alignment == Alignment::bottom_right ? m.seqlen_k - q_seqs.length(b) : 0;
    return m;
  }
};

}  // namespace attile
