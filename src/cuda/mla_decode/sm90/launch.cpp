// mla_decode_sm90: what it takes, which instance, how much workspace, which parameters.
#include "cuda/mla_decode/sm90/launch.hpp"

#include <algorithm>
#include <climits>
#include <string>

#include "core/mla_decode_problem.hpp"
#include "cuda/device.hpp"
#include "cuda/forward/sm90/tensor_maps.hpp"
#include "cuda/mla_decode/sm90/instances.hpp"

namespace attile::cuda {
namespace {

using namespace mla_sm90;

constexpr uint64_t kHonoured = kCausal | kKvLens | kPages | kLse | kSinks | kSoftcap | kVarlenQ | kFloat8Scales;
constexpr int64_t kTileRows = 64, kHeadRopeDim = 16;
constexpr double kLog2e = 1.4426950408889634;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t bytes_of(DType t) { return static_cast<int64_t>(size_of(t)); }

int64_t rows_of(const MlaDecodeProblem& p) { return p.q_seqs.longest * p.heads_q; }
int64_t tiles_of(const MlaDecodeProblem& p) { return ceil_div(rows_of(p), kTileRows); }
int64_t rope_columns(const MlaDecodeProblem& p) { return p.head_rope ? p.heads_q * p.rope : p.rope; }

// Boxes of block_n rows need pages that they divide; a dense cache is one page a sequence.
const Instance* find_instance(const MlaDecodeProblem& p) {
  const bool narrow = p.k.dtype == DType::f8e4m3;
  const std::span<const Instance> files[] = {p.dtype == DType::bf16 ? bf16_small() : f16_small(),
                                             p.dtype == DType::bf16 ? bf16_512() : f16_512(), bf16_narrow()};
  for (const auto& instances : files)
    for (const Instance& i : instances) {
      const bool boxes = !p.has(kPages) || p.page_size() % i.block_n == 0;
      if (p.latent <= i.latent && rope_columns(p) <= i.rope && p.head_rope == i.head_rope && narrow == i.narrow && boxes == !i.gathered &&
          rows_of(p) <= i.most_rows)
        return &i;
    }
  return nullptr;
}

// Heads and tokens of a query as rows that follow each other at one distance; 0: they do not.
int64_t row_stride(const View& q) {
  if (q.shape[2] == 1) return q.shape[1] == 1 ? (q.shape[3] + 7) / 8 * 8 : q.stride[1];
  return q.shape[1] == 1 || q.stride[1] == q.shape[2] * q.stride[2] ? q.stride[2] : 0;
}

std::string array_objection(const MlaDecodeProblem& p) {
  const struct {
    const char* name;
    const View& view;
  } arrays[] = {{"q_nope", p.q}, {"q_pe", p.q_pe}, {"ckv", p.k}, {"kpe", p.kpe}};
  for (const auto& [name, view] : arrays) {
    if (!view) continue;
    if (std::string why = sm90::tma_objection(name, view); !why.empty()) return why;
    if (std::max({view.shape[0], view.shape[1], view.shape[1] * view.shape[2]}) >= INT_MAX)
      return std::string(name) + " has 2^31 rows or more";
  }
  for (const auto& [name, view] : {std::pair<const char*, const View&>{"q_nope", p.q}, {"q_pe", p.q_pe}})
    if (view && row_stride(view) == 0) return std::string(name) + "'s heads and tokens are not evenly spaced";
  if (p.head_rope && p.kpe.shape[2] > 1 && p.kpe.stride[2] != p.rope) return "kpe's heads do not follow each other";
  const struct {
    const char* name;
    const void* data;
    DType dtype;
  } numbers[] = {{"kv_lens", p.k_seqs.lens.data, p.k_seqs.lens.dtype},
                 {"the queries' offsets", p.q_seqs.cu.data, p.q_seqs.cu.dtype},
                 {"the pages' offsets", p.page_begin.data, p.page_begin.dtype},
                 {"page_table", p.page_table.data, p.page_table.dtype},
                 {"softmax_aux", p.sinks.data, p.sinks.dtype}};
  for (const auto& [name, data, dtype] : numbers)
    if (data && reinterpret_cast<uintptr_t>(data) % size_of(dtype) != 0)
      return std::string("takes aligned numbers only: ") + name + " are not";
  return "";
}

std::string why_not(const AttentionProblem& problem, const Config& config) {
  const MlaDecodeProblem& p = mla_decode(problem);
  if (const CudaDevice& d = device(p.device_id); d.major != 9 || d.minor != 0)
    return "is for compute capability 9.0: cuda:" + std::to_string(p.device_id) + " (" + d.name + ") has " + std::to_string(d.major) + "." +
           std::to_string(d.minor);
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return std::string("takes float16 and bfloat16 only: got ") + info(p.dtype).name;
  if (p.head_rope && p.rope != kHeadRopeDim)
    return "takes rope keys of heads of " + std::to_string(kHeadRopeDim) + " dims: got " + std::to_string(p.rope);
  const Instance* instance = find_instance(p);
  if (!instance) {
    if (p.k.dtype == DType::f8e4m3)
      return "takes float8 latents beside a shared rope key of at most 64 dims, in pages of a multiple of 64 keys";
    if (p.head_rope && rope_columns(p) > 512) return "takes rope keys of at most 32 heads: got " + std::to_string(p.heads_q);
    if (p.has(kPages) && p.head_rope)
      return "takes rope keys of heads in pages of a multiple of 32 keys: got " + std::to_string(p.page_size());
    return "takes at most 64 rope dims in pages that are not multiples of 64 keys: got " + std::to_string(p.rope);
  }
  if (std::string why = array_objection(p); !why.empty()) return why;
  if (config.num_splits != 0)
    return "splits by the lengths, on the GPU: cfg.num_splits must be 0, got " + std::to_string(config.num_splits);
  if (config.block_q != 0 && config.block_q != kTileRows)
    return "cfg.block_q must be " + std::to_string(kTileRows) + ": got " + std::to_string(config.block_q);
  if (config.block_k != 0 && config.block_k != instance->block_n)
    return "cfg.block_k must be " + std::to_string(instance->block_n) + ": got " + std::to_string(config.block_k);
  if (instance->gathered)
    for (const View* v : {&p.k, &p.kpe})
      if (*v && v->shape[0] > 1 && v->stride[0] / 8 * v->shape[0] >= int64_t{UINT32_MAX})
        return "takes caches of less than 64 GB in pages that are not multiples of " + std::to_string(instance->block_n) + " keys";
  if (p.batch > kMaxBatch) return "takes at most " + std::to_string(kMaxBatch) + " sequences: got " + std::to_string(p.batch);
  if (const int most = device(p.device_id).multiprocessors; tiles_of(p) > most)
    return "takes at most " + std::to_string(most * kTileRows) + " query rows (tokens x heads) a sequence: got " +
           std::to_string(rows_of(p));
  if (p.k_seqs.rows >= INT_MAX / 2 || p.batch * (ceil_div(p.k_seqs.rows, instance->block_n) + 4) >= INT_MAX ||
      tiles_of(p) * p.batch >= INT_MAX / 4)
    return "takes fewer than 2^31 blocks of keys";
  return "";
}

// Where the workspace has what; all begin on 256 bytes.
struct Layout {
  int64_t parts, tiles, rows, sinks, arrived, out_parts, lse_parts, total = 0;

  explicit Layout(const MlaDecodeProblem& p) {
    tiles = tiles_of(p);
    rows = rows_of(p);
    parts = std::clamp<int64_t>(device(p.device_id).multiprocessors / std::max<int64_t>(tiles, 1), 1, kMaxParts);
    sinks = take(p.has(kSinks) ? p.heads_q * sizeof(float) : 0);
    arrived = take(p.batch * tiles * 2 * sizeof(int32_t));
    const int64_t slots = parts > 1 ? 2 * parts : 0;  // one part splits nothing
    out_parts = take(slots * rows * p.latent * sizeof(float));
    lse_parts = take(2 * slots * rows * sizeof(float));
  }

 private:
  int64_t take(size_t bytes) {
    const int64_t at = total;
    total += static_cast<int64_t>((bytes + 255) / 256 * 256);
    return at;
  }
};

Plan plan(const AttentionProblem& problem, const Config&, int) {
  const MlaDecodeProblem& p = mla_decode(problem);
  const Layout layout(p);
  Plan plan;
  plan.block_q = kTileRows;
  plan.block_k = find_instance(p)->block_n;
  plan.num_splits = layout.parts;
  plan.workspace_bytes = static_cast<size_t>(layout.total);
  return plan;
}

Indices indices_of(const IndexView& v) { return {v.data, v.stride * bytes_of(v.dtype)}; }

// An array that has no elements, or is absent, is another one of which nothing is read.
Matrix keys_matrix(const View& v, int64_t columns, const View& other) {
  const View& x = v && v.shape[0] * v.shape[1] > 0 ? v : other;
  const auto step = [&](int d) { return x.shape[d] > 1 ? x.stride[d] : int64_t{16}; };
  if (&x == &other) return {x.data, other.shape[3], 1, 16, 1, 16};
  return {x.data, columns, x.shape[1], step(1), x.shape[0], step(0)};
}
Matrix query_matrix(const View& q) {
  return {q.data, q.shape[3], q.shape[1] * q.shape[2], row_stride(q), q.shape[0], q.shape[0] > 1 ? q.stride[0] : int64_t{8}};
}

Params params_of(const MlaDecodeProblem& p, const Instance& instance, void* workspace) {
  const Layout layout(p);
  Params f{};
  f.batch = static_cast<int32_t>(p.batch), f.heads = static_cast<int32_t>(p.heads_q);
  f.latent = static_cast<int32_t>(p.latent), f.rope = static_cast<int32_t>(p.rope);
  f.packed = p.q_seqs.packed, f.causal = p.causal;
  f.seqlen_q = static_cast<int32_t>(p.q_seqs.longest), f.q_tokens = static_cast<int32_t>(p.q_seqs.rows);

  f.kv_lens = indices_of(p.k_seqs.lens), f.cu_seqlens_q = indices_of(p.q_seqs.cu), f.page_begin = indices_of(p.page_begin);
  f.kv_most = static_cast<int32_t>(p.k.shape[0] * p.k.shape[1] > 0 ? p.k_seqs.rows : 0);
  f.page_size = INT_MAX, f.pages = static_cast<int32_t>(p.k.shape[0]);
  if (p.has(kPages)) {
    f.page_table = p.page_table.data;
    f.table_row = p.page_begin ? 0 : p.page_table.stride[2] * bytes_of(p.page_table.dtype);
    f.table_entry = p.page_table.stride[3] * bytes_of(p.page_table.dtype);
    f.table_entries = static_cast<int32_t>(p.page_table.shape[3]);
    f.page_size = static_cast<int32_t>(p.page_size());
  }

  f.raw_scale = static_cast<float>(p.softmax_scale);
  f.softcap = p.has(kSoftcap) ? static_cast<float>(p.softcap) : 0.f;
  f.reshape = p.has(kSoftcap) || !(p.softmax_scale > 0);
  f.scale_log2 = static_cast<float>((f.reshape ? 1 : p.softmax_scale) * kLog2e);
  f.ckv_scale = static_cast<float>(p.ckv_scale);
  if (p.has(kSinks)) {
    f.sinks = p.sinks.data, f.sink_dtype = p.sinks.dtype, f.sink_count = static_cast<int32_t>(p.sinks.shape[3]);
    f.sink_head = p.sinks.stride[2] * bytes_of(p.sinks.dtype), f.sink_next = p.sinks.stride[3] * bytes_of(p.sinks.dtype);
  }

  f.ckv = p.k.data, f.ckv_page = p.k.stride[0], f.ckv_row = static_cast<int32_t>(p.k.stride[1]);
  if (p.kpe) f.kpe = p.kpe.data, f.kpe_page = p.kpe.stride[0], f.kpe_row = static_cast<int32_t>(p.kpe.stride[1]);
  f.out = p.out.data, f.out_batch = p.out.stride[0], f.out_token = p.out.stride[1], f.out_head = p.out.stride[2];
  uint64_t bits = reinterpret_cast<uintptr_t>(p.out.data);
  for (int d = 0; d < 3; ++d)
    if (p.out.shape[d] > 1) bits |= static_cast<uint64_t>(p.out.stride[d]) * 2;
  f.out_aligned = bits % 16 == 0;
  if (p.lse) {
    f.lse = reinterpret_cast<float*>(p.lse.data);
    f.lse_batch = p.lse.stride[0], f.lse_head = p.lse.stride[1], f.lse_token = p.lse.stride[2];
  }
  f.lse_scale = static_cast<float>(p.lse_scale / kLog2e);

  char* base = static_cast<char*>(workspace);
  f.parts = static_cast<int32_t>(layout.parts), f.tiles = static_cast<int32_t>(layout.tiles), f.block_n = instance.block_n;
  f.parts_a_request = f.parts / f.batch, f.requests_a_part = static_cast<int32_t>(ceil_div(f.batch, f.parts));
  f.sink_log2 = p.has(kSinks) ? reinterpret_cast<float*>(base + layout.sinks) : nullptr;
  f.arrived = reinterpret_cast<int32_t*>(base + layout.arrived);
  f.out_parts = reinterpret_cast<float*>(base + layout.out_parts);
  f.lse_parts = reinterpret_cast<float*>(base + layout.lse_parts);
  return f;
}

void run(const AttentionProblem& problem, const Plan&, void* workspace, const Execution& execution) {
  const MlaDecodeProblem& p = mla_decode(problem);
  if (p.batch == 0 || p.heads_q == 0 || p.q_seqs.rows == 0) return;
  const Instance& instance = *find_instance(p);
  const Params params = params_of(p, instance, workspace);
  const Arrays arrays{keys_matrix(p.k, p.latent, p.q), keys_matrix(p.kpe, rope_columns(p), p.q), query_matrix(p.q),
                      query_matrix(p.q_pe ? p.q_pe : p.q)};
  instance.launch(params, arrays, execution.stream);
}

bool available() { return some_device_has(9, 0); }

constexpr Kernel kKernels[] = {{"mla_decode_sm90", "sm90a", kHonoured, available, why_not, plan, run}};

}  // namespace

std::span<const Kernel> sm90_mla_decode_kernels() { return kKernels; }

}  // namespace attile::cuda
