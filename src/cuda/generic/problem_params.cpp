#include "cuda/generic/problem_params.hpp"

#include <algorithm>

namespace attile::cuda::generic {
namespace {

int64_t bytes_of(DType t) { return static_cast<int64_t>(size_of(t)); }

int32_t granule_of(const View& v) {
  uint64_t bits = reinterpret_cast<uintptr_t>(v.data) | 16;
  for (int i = 0; i < 3; ++i)
    if (v.shape[i] > 1) bits |= static_cast<uint64_t>(v.stride[i] * bytes_of(v.dtype));
  const int32_t granule = static_cast<int32_t>(bits & -bits);
  return granule == 8 ? 4 : granule;
}

}  // namespace

Tensor tensor_of(const View& v) {
  const int64_t size = bytes_of(v.dtype);
  return {v.data, v.stride[0] * size, v.stride[1] * size, v.stride[2] * size, granule_of(v)};
}

Indices indices_of(const IndexView& v) {
  return {v.data, v ? v.stride * bytes_of(v.dtype) : 0, v.dtype == DType::i64};
}

namespace {

// axis: that of its positions in a bias and a mask.
Lengths lengths_of(const AttentionProblem& p, const Sequences& s, int axis) {
  int64_t most = s.rows;
  if (p.has(kBias)) most = std::min(most, p.bias.shape[axis]);
  if (p.has(kAttentionMask)) most = std::min(most, p.attention_mask.shape[axis]);
  return {indices_of(s.cu), indices_of(s.lens), static_cast<int32_t>(s.rows), static_cast<int32_t>(most), s.packed};
}

Elementwise elementwise_of(const View& v, int64_t size_of_pairs) {
  const int64_t size = bytes_of(v.dtype);
  Elementwise e{v.data, v.stride[0] * size, v.stride[1] * size, v.stride[2] * size, v.stride[3] * size, v.dtype, false, 0};
  uint64_t bits = reinterpret_cast<uintptr_t>(v.data);
  for (int i = 0; i < 3; ++i) bits |= static_cast<uint64_t>(v.stride[i] * size);
  e.pairs = size == size_of_pairs && v.stride[3] == 1 && bits % static_cast<uint64_t>(2 * size) == 0;
  e.granule = bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 2;
  return e;
}

Ids ids_of(const View& v) {
  const int64_t size = bytes_of(v.dtype);
  return {v.data, v.stride[2] * size, v.stride[3] * size, v.dtype == DType::i64};
}

int32_t band_side(int64_t side) { return static_cast<int32_t>(std::min<int64_t>(side, ForwardParams::kUnlimited)); }

}  // namespace

ForwardParams problem_params(const AttentionProblem& p) {
  ForwardParams f{};
  f.q = tensor_of(p.q);
  f.k = tensor_of(p.k);
  f.v = tensor_of(p.v);
  f.out = tensor_of(p.out);
  if (p.lse) {
    f.lse = reinterpret_cast<float*>(p.lse.data);
    f.lse_batch = p.lse.stride[0], f.lse_head = p.lse.stride[1], f.lse_row = p.lse.stride[2];
  }
  f.q_lengths = lengths_of(p, p.q_seqs, 2);
  f.k_lengths = lengths_of(p, p.k_seqs, 3);
  f.batch = static_cast<int32_t>(p.batch);
  f.heads_k = static_cast<int32_t>(p.heads_k);
  f.group = static_cast<int32_t>(p.group);
  f.head_dim = static_cast<int32_t>(p.head_dim);
  f.head_dim_v = static_cast<int32_t>(p.head_dim_v);
  if (p.has(kPages)) {
    f.pages = {p.page_table.data, p.page_table.stride[3] * bytes_of(p.page_table.dtype), p.page_table.dtype == DType::i64};
    f.pages_batch = p.page_table.stride[2] * bytes_of(p.page_table.dtype);
    f.page_size = static_cast<int32_t>(p.page_size());
    f.page_count = static_cast<int32_t>(p.k.shape[0]);
  }
  f.scale = static_cast<float>(p.softmax_scale);
  f.lazy = p.has(kUnnormalized) ? 0.f : 8.f;
  f.left = band_side(p.window_left);
  f.right = p.causal ? 0 : band_side(p.window_right);
  f.bottom_right = p.alignment == Alignment::bottom_right;
  f.exact = p.dtype == DType::f32 && p.precision != ATTILE_PRECISION_DEFAULT;
  if (p.has(kBias)) f.bias = elementwise_of(p.bias, 2);
  if (p.has(kAttentionMask)) f.mask = elementwise_of(p.attention_mask, 1);
  if (p.has(kSegmentIds)) {
    f.q_ids = ids_of(p.q_ids);
    f.k_ids = ids_of(p.k_ids);
  }
  if (p.has(kSinks)) {
    f.sinks = p.sinks.data;
    f.sink_head = p.sinks.stride[2] * bytes_of(p.sinks.dtype);
    f.sink_next = p.sinks.stride[3] * bytes_of(p.sinks.dtype);
    f.sink_dtype = p.sinks.dtype;
    f.sink_count = static_cast<int32_t>(p.sinks.shape[3]);
  }
  f.softcap = p.has(kSoftcap) ? static_cast<float>(p.softcap) : 0.f;
  f.logits_dtype = p.has(kLogitsDtype) ? p.logits_dtype : DType::none;
  f.dropout = p.has(kDropout);
  f.unnormalized = p.has(kUnnormalized);
  f.dropout_seed = p.dropout.seed;
  f.dropout_threshold = p.dropout.threshold;
  f.dropout_sequence = p.dropout.first_sequence;
  f.dropout_head = p.dropout.first_head;
  f.dropout_scale = f.dropout ? static_cast<float>(p.dropout.scale) : 1.f;
  return f;
}

}  // namespace attile::cuda::generic
