// forward_sm90: which instance, what it is given, what is queued before it.
#include "cuda/forward/sm90/forward_launch.hpp"

#include <algorithm>
#include <climits>

#include "core/check.hpp"
#include "cuda/device.hpp"
#include "cuda/forward/sm90/instances.cuh"
#include "cuda/forward/sm90/tensor_maps.hpp"

namespace attile::cuda {
namespace {

using namespace sm90;

constexpr uint64_t kScoreOptions = kBias | kAttentionMask | kSegmentIds | kSoftcap;
constexpr uint64_t kHonoured =
    kScoreOptions | kSinks | kCausal | kWindow | kVarlenQ | kVarlenK | kLse | kReducedPrecision | kFloat8Scales | kKvLens;
constexpr float kLog2e = 1.4426950408889634f;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t bytes_of(DType t) { return static_cast<int64_t>(size_of(t)); }

// ---- which instance ----

bool varying(const Sequences& s) { return s.cu || s.lens; }

// Of the queries' dtype, rows and 16-byte pieces of keys begin on 16 bytes, and each row is its own.
bool bias_by_tma(const View& b, DType dtype) {
  const bool aligned = reinterpret_cast<uintptr_t>(b.data) % 16 == 0 && b.stride[0] % 8 == 0 && b.stride[1] % 8 == 0 && b.stride[2] % 8 == 0;
  return aligned && b.dtype == dtype && b.stride[3] == 1 && b.stride[2] > 0 && b.stride[1] >= 0 && b.stride[0] >= 0 && b.shape[3] > 1;
}

Kind kind_of(const AttentionProblem& p) {
  const bool shifted = p.causal && p.alignment == Alignment::top_left && p.q_seqs.rows != p.k_seqs.rows;
  switch (p.options & kScoreOptions) {
    case 0: {
      const bool band = varying(p.q_seqs) || varying(p.k_seqs) || p.has(kWindow) || p.has(kSinks) || shifted;
      return band ? Kind::kBand : p.causal ? Kind::kCausal : Kind::kFull;
    }
    case kSegmentIds: return Kind::kSegments;
    case kAttentionMask: return Kind::kMask;
    case kSoftcap: return Kind::kCap;
    case kBias: return bias_by_tma(p.bias, p.dtype) ? Kind::kBias : Kind::kScores;
    default: return Kind::kScores;
  }
}

std::span<const Instance> instances_of(const AttentionProblem& p) {
  const int64_t d = p.head_dim, dv = p.head_dim_v;
  if (d > 256 || dv > 256) return {};
  if (p.dtype == DType::f8e4m3) return forward_e4m3();
  const bool half = p.dtype == DType::f16;
  if (d <= 64 && dv <= 64) return half ? forward_f16_64() : forward_bf16_64();
  if (d <= 96 && dv <= 96) return half ? forward_f16_96() : forward_bf16_96();
  if (d <= 128 && dv <= 128) return half ? forward_f16_128() : forward_bf16_128();
  if (d <= 192 && dv <= 128) return half ? forward_f16_192() : forward_bf16_192();
  return half ? forward_f16_256() : forward_bf16_256();
}

// Head dims without a kernel of the kind have one of all kinds.
const Instance& instance_of_kind(const AttentionProblem& p, Kind wanted) {
  const std::span<const Instance> all = instances_of(p);
  for (const Kind kind : {wanted, Kind::kScores})
    for (const Instance& i : all)
      if (i.kind == kind && p.k_seqs.longest <= i.to_keys && p.head_dim <= i.dim && p.head_dim_v <= i.dim_v) return i;
  throw Error(ATTILE_RUNTIME_ERROR, "forward_sm90 has no kernel for these head dims");
}

// The instance, and how many heads of a group are rows of one tile (rows.cuh).
struct Choice : Instance {
  int heads;
  int64_t positions() const { return tile_m / heads; }
};

bool can_pack(const AttentionProblem& p, Kind kind) {
  const bool mask_of_heads = p.has(kAttentionMask) && p.attention_mask.stride[1] != 0;  // key tiles are found for all rows of a tile at once
  return kind != Kind::kBias && !mask_of_heads;
}

// Heads are packed where that leaves at most nine tenths of the tiles.
Choice choose(const AttentionProblem& p) {
  const Kind kind = kind_of(p);
  const Choice plain{instance_of_kind(p, kind), 1};
  if (p.group < 2 || p.batch < 1 || !can_pack(p, kind)) return plain;
  const int64_t length = p.q_seqs.packed ? ceil_div(p.q_seqs.rows, p.batch) : p.q_seqs.rows;
  Choice best{instance_of_kind(p, std::max(kind, Kind::kBand)), 1};
  int64_t least = ceil_div(length, plain.tile_m) * p.group * 9 / 10;
  for (int heads = 2; heads <= std::min<int64_t>(p.group, best.tile_m); ++heads)
    if (p.group % heads == 0)
      if (const int64_t tiles = ceil_div(length, best.tile_m / heads) * (p.group / heads); tiles <= least) least = tiles, best.heads = heads;
  return best.heads > 1 ? best : plain;
}

// ---- how many tiles ----

int64_t m_tiles_of(const AttentionProblem& p, const Choice& i) {
  const int64_t tiles = ceil_div(p.q_seqs.rows, i.positions());
  return p.q_seqs.packed ? tiles + p.batch + 1 : tiles;  // as many as there can be
}
int64_t tiles_of(const AttentionProblem& p, const Choice& i) {
  return m_tiles_of(p, i) * (p.heads_q / i.heads) * (p.q_seqs.packed ? 1 : p.batch);
}

// How many (batch, head) pairs share a section: not more key heads than fit in L2, nor more than it takes to occupy every multiprocessor (so
// the reads spread over time); of the sizes near that, one that leaves no small section last.
int64_t section_size(int64_t pairs, int64_t group, int64_t m_tiles, int64_t kv_bytes, int64_t multiprocessors) {
  const int64_t in_l2 = std::max<int64_t>(1, (32 << 20) / std::max<int64_t>(1, kv_bytes));
  const int64_t bound = std::clamp<int64_t>(ceil_div(multiprocessors, m_tiles), 1, in_l2) * group;
  int64_t best = std::min(bound, pairs);
  for (int64_t size = best; size > bound / 2; --size)
    if ((size - pairs % size) % size < (best - pairs % best) % best) best = size;
  return best;
}

TileOrder order_of(const AttentionProblem& p, const Choice& i) {
  const int64_t m_tiles = m_tiles_of(p, i), batches = p.q_seqs.packed ? 1 : p.batch, heads = p.heads_q / i.heads, pairs = heads * batches;
  const int64_t kv_bytes = p.k_seqs.longest * (p.head_dim + p.head_dim_v) * bytes_of(p.dtype);
  int64_t section = section_size(pairs, p.group / i.heads, m_tiles, kv_bytes, device(p.device_id).multiprocessors);
  const bool bias = i.kind == Kind::kBias, by_batch = bias && p.bias.stride[0] == 0 && p.bias.stride[1] != 0 && batches > 1;
  if (by_batch) section = std::max<int64_t>(1, (section + batches / 2) / batches) * batches;  // they share the bias, the heads do not
  const auto narrow = [](int64_t x) { return static_cast<int>(x); };
  return {narrow(m_tiles), narrow(heads), narrow(batches), narrow(std::min(section, pairs)), p.causal || bias, by_batch};
}

// ---- the workspace ----

bool plain_sinks(const View& s) { return s.dtype == DType::f32 && s.shape[3] == 1 && reinterpret_cast<uintptr_t>(s.data) % 4 == 0; }

// The mask's own planes and rows; what is broadcast is there once.
struct MaskShape {
  int batches, heads, rows, keys, words, m_tiles, n_tiles;
};
MaskShape mask_shape(const AttentionProblem& p, const Choice& i) {
  const View& m = p.attention_mask;
  const auto own = [&](int d) { return m.stride[d] ? static_cast<int>(m.shape[d]) : 1; };
  const int keys = static_cast<int>(m.shape[3]);
  return {own(0), own(1), own(2), keys, (keys + 127) / 128 * 4, static_cast<int>(ceil_div(m.shape[2], i.positions())), static_cast<int>(ceil_div(keys, i.tile_n))};
}

bool has_segment_ranges(const AttentionProblem& p, const Choice& i) {
  return (i.kind == Kind::kSegments || i.kind == Kind::kScores) && p.has(kSegmentIds) && !p.q_seqs.packed;
}
int64_t transposed_row(const AttentionProblem& p) {
  if (p.k_seqs.packed) return (p.k_seqs.rows / kTransposedKeys + p.batch + 1) * kTransposedKeys;
  return ceil_div(p.k_seqs.rows, kTransposedKeys) * kTransposedKeys;
}
int64_t transposed_batches(const AttentionProblem& p) { return p.k_seqs.packed ? 1 : p.batch; }

struct Workspace {
  size_t bytes = 0, counter, sinks, tiles, bits, values;
};
Workspace workspace_of(const AttentionProblem& p, const Choice& i) {
  Workspace w;
  const auto take = [&](int64_t bytes) {
    const size_t at = w.bytes;
    w.bytes += static_cast<size_t>(ceil_div(bytes, 256) * 256);
    return at;
  };
  w.counter = take(i.dynamic ? 4 : 0);
  w.sinks = take(p.has(kSinks) && !plain_sinks(p.sinks) ? 4 * p.heads_q : 0);
  int64_t tiles = has_segment_ranges(p, i) ? p.batch * m_tiles_of(p, i) : 0, words = 0;
  if (p.has(kAttentionMask)) {
    const MaskShape m = mask_shape(p, i);
    const int64_t planes = int64_t{m.batches} * m.heads;
    if (!p.has(kSegmentIds)) tiles = planes * m.m_tiles;
    words = planes * m.rows * m.words + 4;  // a tile may read past the last row
  }
  w.tiles = take(16 * tiles);
  w.bits = take(4 * words);
  w.values = take(p.dtype == DType::f8e4m3 ? transposed_batches(p) * p.heads_k * i.dim_v * transposed_row(p) : 0);
  return w;
}

// ---- why not ----

std::string device_objection(int id) {
  const CudaDevice& d = device(id);
  if (d.major == 9 && d.minor == 0) return "";
  return "is machine code of sm_90a: cuda:" + std::to_string(id) + " (" + d.name + ") has compute capability " + std::to_string(d.major) + "." +
         std::to_string(d.minor);
}

std::string float8_objection(const AttentionProblem& p) {
  if (p.dtype != DType::f8e4m3) return "";
  if ((p.options & kScoreOptions) && std::max(p.head_dim, p.head_dim_v) > 128)
    return "takes bias, mask, segment ids and soft cap with float8_e4m3 for head dims of at most 128: got " + std::to_string(p.head_dim) + " and " +
           std::to_string(p.head_dim_v);
  if (p.head_dim_v % 16) return "takes head_dim_v that are multiples of 16 with float8_e4m3: got " + std::to_string(p.head_dim_v);
  return "";
}

std::string size_objection(const AttentionProblem& p, const Choice& i) {
  if (p.batch < 1 || p.heads_q < 1 || p.heads_k < 1 || p.q_seqs.rows < 1 || p.k_seqs.rows < 1) return "takes at least one sequence, head, query and key";
  if (p.q_seqs.rows >= Band::kUnlimited || p.k_seqs.rows >= Band::kUnlimited) return "takes fewer than 2^29 tokens";
  if (tiles_of(p, i) >= INT_MAX / 2) return "takes fewer than 2^30 tiles of queries";
  return "";
}

std::string config_objection(const Config& config, const Choice& i) {
  const struct {
    const char* name;
    int64_t value, own;
  } fields[] = {{"block_q", config.block_q, i.tile_m}, {"block_k", config.block_k, i.tile_n}, {"num_splits", config.num_splits, 1}};
  for (const auto& [name, value, own] : fields)
    if (value != 0 && value != own)
      return std::string("cfg.") + name + " must be " + std::to_string(own) + " for these head dims and options: got " + std::to_string(value);
  return "";
}

std::string memory_objection(const AttentionProblem& p) {
  const struct {
    const char* name;
    const View& v;
    bool ending;
  } arrays[] = {{"query", p.q, varying(p.q_seqs)}, {"key", p.k, false}, {"value", p.v, varying(p.k_seqs)}};
  for (const auto& [name, v, ending] : arrays) {
    if (std::string why = tma_objection(name, v); !why.empty()) return why;
    if (ending && ending_steps(v).row == 0) return std::string(name) + " has more than 2^31 steps of its strides' common divisor";
  }
  if (p.has(kBias) && reinterpret_cast<uintptr_t>(p.bias.data) % size_of(p.bias.dtype)) return "takes a bias that is aligned";
  for (const View& ids : {p.q_ids, p.k_ids})
    if (p.has(kSegmentIds) && reinterpret_cast<uintptr_t>(ids.data) % size_of(ids.dtype)) return "takes segment ids that are aligned";
  return "";
}

// forward_generic_sm80 packs the heads of a group, and splits the keys.
std::string too_few_rows(const AttentionProblem& p, const Config& config, const Choice& i) {
  if (!config.kernel.empty() || p.dtype == DType::f8e4m3) return "";
  if (p.q_seqs.longest * i.heads < 32) return "fewer than 32 rows (queries x heads of a group) a sequence are not worth its tiles";
  const int64_t tiles = tiles_of(p, i);
  if (4 * tiles < device(p.device_id).multiprocessors && p.k_seqs.longest >= 1024)
    return std::to_string(tiles) + " tiles of queries leave most multiprocessors idle, and their keys are not split";
  return "";
}

std::string why_not(const AttentionProblem& p, const Config& config) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16 && p.dtype != DType::f8e4m3)
    return std::string("takes float16, bfloat16 and float8_e4m3 only: got ") + info(p.dtype).name;
  if (std::string why = device_objection(p.device_id); !why.empty()) return why;
  if (p.head_dim > 256 || p.head_dim_v > 256)
    return "takes head dims of at most 256: got " + std::to_string(p.head_dim) + " and " + std::to_string(p.head_dim_v);
  if (!(p.softmax_scale > 0)) return "takes a positive softmax_scale only";
  if (std::string why = float8_objection(p); !why.empty()) return why;
  const Choice i = choose(p);
  if (std::string why = size_objection(p, i); !why.empty()) return why;
  if (std::string why = memory_objection(p); !why.empty()) return why;
  if (std::string why = config_objection(config, i); !why.empty()) return why;
  return too_few_rows(p, config, i);
}

Plan plan(const AttentionProblem& p, const Config&, int) {
  const Choice i = choose(p);
  Plan plan;
  plan.block_q = i.tile_m;
  plan.block_k = i.tile_n;
  plan.workspace_bytes = workspace_of(p, i).bytes;
  return plan;
}

// ---- the kernel's parameters ----

Lengths lengths_of(const Sequences& s) {
  const IndexView& v = s.cu ? s.cu : s.lens;
  const int rows = static_cast<int>(s.rows);
  return {s.cu ? v.data : nullptr, s.lens ? v.data : nullptr, v.stride * bytes_of(v.dtype), rows, rows, v.dtype == DType::i64, s.packed};
}

EndingSteps steps_of(const EndingMap& m) { return {static_cast<int>(m.row), static_cast<int>(m.head), static_cast<int>(m.batch)}; }

CUtensorMap map_of(const View& v, bool ending, int box_rows, EndingSteps& steps) {
  if (!ending) return rows_map(v, box_rows);
  const EndingMap map = ending_steps(v);
  steps = steps_of(map);
  return ending_rows_map(v, map, box_rows);
}

int band_side(int64_t side) { return static_cast<int>(std::min<int64_t>(side, Band::kUnlimited)); }

CUtensorMap packed_map_of(const View& v, int heads, bool ending, int box_positions, EndingSteps& steps) {
  if (!ending) return packed_rows_map(v, heads, box_positions);
  const EndingMap map = ending_steps(every_nth_head(v, heads));
  steps = steps_of(map);
  return packed_ending_rows_map(v, heads, map, box_positions);
}

void set_output(Params& f, const AttentionProblem& p, const Choice& i) {
  const int64_t size = bytes_of(p.out.dtype);
  f.out = p.out.data;
  f.out_batch = p.out.stride[0] * size, f.out_row = p.out.stride[1] * size, f.out_head = p.out.stride[2] * size;
  f.head_dim_v = static_cast<int>(p.head_dim_v);
  f.out_aligned = f.out_by_tma = tma_objection("out", p.out).empty();
  if (64 % i.heads || (p.q_seqs.packed && ending_steps(p.out).row == 0)) f.out_by_tma = false;
  if (f.out_by_tma) f.out_map = packed_map_of(p.out, i.heads, p.q_seqs.packed, 64 / i.heads, f.out_steps);
  if (!p.lse) return;
  f.lse = reinterpret_cast<float*>(p.lse.data);
  f.lse_batch = p.lse.stride[0], f.lse_head = p.lse.stride[1], f.lse_row = p.lse.stride[2];
}

void set_segments(Params& f, const AttentionProblem& p, const Choice& i, int4* tiles, void* stream) {
  const auto strides = [](const View& v, int64_t& batch, int64_t& row) { batch = v.stride[2] * bytes_of(v.dtype), row = v.stride[3] * bytes_of(v.dtype); };
  SegmentParams& s = f.segments;
  s.q = p.q_ids.data, s.k = p.k_ids.data;
  strides(p.q_ids, s.q_batch, s.q_row), strides(p.k_ids, s.k_batch, s.k_row);
  s.q_wide = p.q_ids.dtype == DType::i64, s.k_wide = p.k_ids.dtype == DType::i64;
  if (!has_segment_ranges(p, i)) return;
  f.ranges = {tiles, 1, 0, f.order.m_tiles};
  find_segment_tiles(s, static_cast<int>(p.batch), f.seqlen_q, f.seqlen_k, f.order.m_tiles, f.packing.positions, i.tile_n, tiles, f.counter, stream);
}

void set_mask(Params& f, const AttentionProblem& p, const Choice& i, int4* tiles, uint32_t* bits, void* stream) {
  const View& m = p.attention_mask;
  const MaskShape s = mask_shape(p, i);
  const int64_t size = bytes_of(m.dtype), plane = int64_t{s.rows} * s.words;
  find_mask_bits({m.data, m.stride[0] * size, m.stride[1] * size, m.stride[2] * size, m.stride[3] * size, static_cast<int>(size), s.batches, s.heads, s.rows,
                  s.keys},
                 s.words, bits, stream);
  f.mask = {bits, s.batches > 1 ? plane * s.heads : 0, s.heads > 1 ? plane : 0, s.rows > 1 ? s.words : 0, s.rows, s.words};
  f.k_lengths.most = std::min(f.k_lengths.most, s.keys);
  if (p.has(kSegmentIds)) return;  // ranges are the documents'
  find_mask_tiles(bits, s.batches * s.heads, s.rows, s.words, s.m_tiles, f.packing.positions, i.tile_n, s.n_tiles, tiles, f.counter, stream);
  f.ranges = {tiles, s.batches > 1 ? s.heads : 0, s.heads > 1 ? 1 : 0, s.m_tiles};
}

void set_bias(Params& f, const AttentionProblem& p, const Choice& i) {
  const View& b = p.bias;
  if (i.kind == Kind::kBias) {
    f.bias = bias_map(b, i.bias_columns, i.tile_m);
    f.bias_heads = b.stride[1] != 0, f.bias_batches = b.stride[0] != 0;
    return;
  }
  ScoreParams& s = f.scores;
  const int64_t size = bytes_of(b.dtype);
  s.bias = b.data, s.bias_type = b.dtype;
  s.bias_batch = b.stride[0] * size, s.bias_head = b.stride[1] * size, s.bias_row = b.stride[2] * size, s.bias_key = b.stride[3] * size;
  s.bias_rows = static_cast<int>(b.shape[2]), s.bias_keys = static_cast<int>(b.shape[3]);
  const int64_t bits = static_cast<int64_t>(reinterpret_cast<uintptr_t>(b.data)) | s.bias_batch | s.bias_head | s.bias_row;
  s.bias_pairs = b.stride[3] == 1 && bits % (2 * size) == 0;
}

void set_scale(Params& f, const AttentionProblem& p, Kind kind) {
  const double scale = p.softmax_scale;
  f.scale_log2 = static_cast<float>(scale * kLog2e);
  f.v_factor = static_cast<float>(p.v_factor);
  if (p.dtype == DType::f8e4m3) f.scale_log2 = static_cast<float>(scale * p.qk_factor * kLog2e);
  if (kind == Kind::kCap) f.cap = cap_params(scale / p.softcap), f.scale_log2 = static_cast<float>(p.softcap * kLog2e);
  if (kind != Kind::kBias && kind != Kind::kScores) return;
  f.scale_log2 = kLog2e;
  f.scores.scale = static_cast<float>(p.dtype == DType::f8e4m3 ? scale * p.qk_factor : scale);
  if (p.has(kSoftcap)) f.cap = cap_params(1 / p.softcap), f.scores.softcap = static_cast<float>(p.softcap);
}

void set_factors(const View& v, const float*& data, int64_t& batch, int64_t& head) {
  if (v) data = reinterpret_cast<const float*>(v.data), batch = v.stride[2], head = v.stride[3];
}

void set_values(Params& f, const AttentionProblem& p, const Choice& i, uint8_t* transposed, void* stream) {
  if (p.dtype != DType::f8e4m3) {
    f.v = map_of(p.v, varying(p.k_seqs), i.tile_n, f.v_steps);
    return;
  }
  const int64_t row = transposed_row(p);
  transpose_values({p.v.data, p.v.stride[0], p.v.stride[1], p.v.stride[2], transposed, row, f.k_lengths, f.sequences, static_cast<int>(p.heads_k),
                    static_cast<int>(p.head_dim_v), i.dim_v},
                   static_cast<int>(transposed_batches(p)), stream);
  View v = p.v;  // [batch, dims, heads, keys]
  v.data = reinterpret_cast<char*>(transposed);
  const int64_t shape[4] = {transposed_batches(p), i.dim_v, p.heads_k, row}, stride[4] = {p.heads_k * i.dim_v * row, row, i.dim_v * row, 1};
  std::copy(shape, shape + 4, v.shape), std::copy(stride, stride + 4, v.stride);
  f.v = rows_map(v, i.dim_v);
  set_factors(p.q_scale, f.q_scale, f.q_scale_batch, f.q_scale_head);
  set_factors(p.k_scale, f.k_scale, f.k_scale_batch, f.k_scale_head);
  set_factors(p.v_scale, f.v_scale, f.v_scale_batch, f.v_scale_head);
}

void run(const AttentionProblem& p, const Plan&, void* workspace, const Execution& execution) {
  const Choice i = choose(p);
  const Workspace w = workspace_of(p, i);
  void* const stream = execution.stream;
  const auto part = [&](size_t offset) { return static_cast<char*>(workspace) + offset; };
  Params f{};
  f.seqlen_q = static_cast<int>(p.q_seqs.rows), f.seqlen_k = static_cast<int>(p.k_seqs.rows);
  f.packing = {i.heads, static_cast<int>(i.positions()), (65536 + i.heads - 1) / i.heads};
  f.group = static_cast<int>(p.group) / i.heads;
  f.order = order_of(p, i);
  f.sequences = static_cast<int>(p.batch);
  f.q_lengths = lengths_of(p.q_seqs), f.k_lengths = lengths_of(p.k_seqs);
  f.window_left = band_side(p.window_left);
  f.window_right = p.causal ? 0 : band_side(p.window_right);
  f.bottom_right = p.alignment == Alignment::bottom_right;
  set_output(f, p, i);
  set_scale(f, p, i.kind);
  f.q = packed_map_of(p.q, i.heads, varying(p.q_seqs), f.packing.positions, f.q_steps);
  f.k = rows_map(p.k, i.tile_n);
  set_values(f, p, i, reinterpret_cast<uint8_t*>(part(w.values)), stream);
  if (p.has(kSinks)) {
    f.sinks = reinterpret_cast<const float*>(p.sinks.data), f.sink_step = p.sinks.stride[2];
    if (!plain_sinks(p.sinks)) {
      float* const sums = reinterpret_cast<float*>(part(w.sinks));
      const int64_t size = bytes_of(p.sinks.dtype);
      sum_sinks({p.sinks.data, p.sinks.stride[2] * size, p.sinks.stride[3] * size, p.sinks.dtype, static_cast<int>(p.sinks.shape[3])}, static_cast<int>(p.heads_q),
                sums, stream);
      f.sinks = sums, f.sink_step = 1;
    }
  }
  if (i.dynamic) f.counter = reinterpret_cast<unsigned*>(part(w.counter));
  int4* const tiles = reinterpret_cast<int4*>(part(w.tiles));
  if (p.has(kSegmentIds)) set_segments(f, p, i, tiles, stream);
  if (p.has(kAttentionMask)) set_mask(f, p, i, tiles, reinterpret_cast<uint32_t*>(part(w.bits)), stream);
  if (p.has(kBias)) set_bias(f, p, i);
  if (i.dynamic && !f.ranges.tiles)
    check(cudaMemsetAsync(f.counter, 0, sizeof(unsigned), static_cast<cudaStream_t>(stream)), "clearing forward_sm90's counter");
  const int64_t blocks = std::min<int64_t>(tiles_of(p, i), device(p.device_id).multiprocessors);
  i.launch(f, static_cast<int>(blocks), stream);
}

bool available() { return some_device_has(9, 0); }

constexpr Kernel kKernels[] = {{"forward_sm90", "sm90a", kHonoured, available, why_not, plan, run}};

}  // namespace

std::span<const Kernel> sm90_forward_kernels() { return kKernels; }

}  // namespace attile::cuda
