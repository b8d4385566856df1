#include "cuda/mla/attention_launch.hpp"

#include <algorithm>

#include "cuda/device.hpp"
#include "cuda/generic/forward_launch.hpp"
#include "cuda/kernels.hpp"
#include "cuda/mla/copy_rows.hpp"
#include "cuda/mla/pieces.hpp"
#include "cuda/mla/products.hpp"

namespace attile::cuda {
namespace {

using namespace generic;

constexpr uint64_t kHonours =
    kLatents | kBias | kAttentionMask | kSinks | kCausal | kWindow | kSoftcap | kDropout | kVarlenQ | kVarlenK | kLse;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- which form, which kernel ----

struct Way {
  Form form;
  const Kernel* kernel;  // null: none, and why
};

// Whether mla_decode can say it: its causal band ends at the last key, and it has neither windows, packed rows nor numbers a pair.
bool decodes(const AttentionProblem& p) {
  constexpr uint64_t kOptions = kLatents | kSinks | kCausal | kSoftcap | kLse;
  const Latents& latents = p.latents;
  const bool band = !p.has(kCausal) || p.alignment == Alignment::bottom_right || p.q_seqs.rows == p.k_seqs.rows;
  return (p.options & ~kOptions) == 0 && band && latents.rank % 8 == 0 && latents.rank <= 512 && latents.rope_dim % 8 == 0 &&
         latents.rope_dim <= 128;
}

const Kernel* find_decode_kernel(const AttentionProblem& p) {
  std::string why;
  if (!decodes(p)) return nullptr;
  return kernel_of_pieces(mla_decode_kernels(), p, {}, why, [&](auto ask) {
    each_piece(p, Form::decode, nullptr,
               [&](const Piece& piece, const Stored&, const AttentionProblem& inner, bool) { ask(decode_problem(p, inner, piece)); });
  });
}

const Kernel* find_forward_kernel(const AttentionProblem& p, Form form, const Config& config, std::string& why) {
  // Dropout's bits are those of the whole problem, which only the generic kernels know of.
  const std::span<const Kernel> table = p.has(kDropout) ? generic_forward_kernels() : forward_kernels();
  return kernel_of_pieces(table, p, config, why, [&](auto ask) {
    each_piece(p, form, nullptr, [&](const Piece&, const Stored&, const AttentionProblem& inner, bool) { ask(inner); });
  });
}

// What an operation of attention costs: at head dims above 256 the forward kernel takes Q and K in parts, and few rows as long as
// kFewestRows of all sequences, for a tile waits for its parts (docs/cuda-mla.md). A kernel of mla_decode has tiles of 64 rows.
constexpr int64_t kWide = 256, kFewestRows = 600, kDecodeRows = 64;
constexpr double kWideCost = 6.5, kGenericDecodeCost = 2.5;

// `rows` query rows of a sequence that see `keys` keys each.
double cost_of_attention(int64_t rows, int64_t keys, int64_t head_dim, int64_t head_dim_v, int64_t batch) {
  const bool wide = std::max(head_dim, head_dim_v) > kWide;
  const double counted = static_cast<double>(wide ? std::max(rows, kFewestRows / batch) : rows);
  return counted * static_cast<double>(keys) * static_cast<double>(head_dim + head_dim_v) * (wide ? kWideCost : 1);
}

// The one with fewer multiply-adds, weighted. Of lengths on the device shapes are known; the middle row speaks for all.
// decode: the kernel of mla_decode that would take the absorbed queries, or null.
MlaStrategy choose_strategy(const AttentionProblem& p, const Kernel* decode) {
  const Latents& latents = p.latents;
  const int64_t batch = std::max<int64_t>(p.batch, 1);
  const int64_t n = p.q_seqs.packed ? ceil_div(p.q_seqs.rows, batch) : p.q_seqs.longest;
  const int64_t m = p.k_seqs.packed ? ceil_div(p.k_seqs.rows, batch) : p.k_seqs.longest;
  if (n == 0) return MlaStrategy::rebuild;
  const Mask mask{p.window_left, p.causal ? 0 : p.window_right, p.alignment == Alignment::bottom_right ? m - n : 0, m};
  const Range middle = mask.keys(n / 2, n / 2 + 1), seen = mask.keys(0, n);
  const int64_t rows = p.heads_q * n, keys = middle.end - middle.begin, wide = latents.rank + latents.rope_dim;
  const double weights = static_cast<double>(latents.rank * (latents.nope_dim + p.head_dim_v));
  const double rebuild = static_cast<double>(inner_heads(p, Form::rebuild)) * static_cast<double>(seen.end - seen.begin) * weights +
                         cost_of_attention(rows, keys, p.head_dim, p.head_dim_v, batch);
  const double among_latents = decode ? static_cast<double>(std::max(rows, kDecodeRows) * keys * (wide + latents.rank)) *
                                            (std::string_view(decode->isa) == "sm90a" ? 1 : kGenericDecodeCost)
                                      : cost_of_attention(rows, keys, wide, latents.rank, batch);
  return static_cast<double>(rows) * weights + among_latents < rebuild ? MlaStrategy::absorb : MlaStrategy::rebuild;
}

// mla_decode's kernels decide themselves on blocks and splits.
Way way_of(const AttentionProblem& p, const Config& config, std::string& why) {
  const bool forced = config.block_q != 0 || config.block_k != 0 || config.num_splits != 0;
  const Kernel* decode = forced || config.strategy == MlaStrategy::rebuild ? nullptr : find_decode_kernel(p);
  const MlaStrategy strategy = config.strategy == MlaStrategy::none ? choose_strategy(p, decode) : config.strategy;
  if (strategy == MlaStrategy::absorb && decode) return {Form::decode, decode};
  const Form form = strategy == MlaStrategy::absorb ? Form::absorb : Form::rebuild;
  return {form, find_forward_kernel(p, form, config, why)};
}

// What the kernel of a way is given.
template <class F>
auto with_inner(const AttentionProblem& p, Form form, const AttentionProblem& inner, const Piece& piece, F f) {
  return form == Form::decode ? f(decode_problem(p, inner, piece)) : f(inner);
}

// ---- the table's row ----

std::string why_not(const AttentionProblem& p, const Config& config) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16 && p.dtype != DType::f32)
    return std::string("takes float32, float16 and bfloat16 only: got ") + info(p.dtype).name;
  if (std::string missing = lacks(p.device_id, 8, 0); !missing.empty()) return missing;
  std::string why;
  return way_of(p, config, why).kernel ? "" : why;
}

// The splits of the first piece, which is no smaller than others, are those of all; 0: the kernel is one of mla_decode's, which decides on
// them itself.
Plan plan(const AttentionProblem& p, const Config& config, int threads) {
  Plan all;
  std::string why;
  const Way way = way_of(p, config, why);
  all.inner = way.kernel;
  all.strategy = absorbs(way.form) ? MlaStrategy::absorb : MlaStrategy::rebuild;
  Config own{config.block_q, config.block_k, config.num_splits, {}, MlaStrategy::none};
  each_piece(p, way.form, nullptr, [&](const Piece& piece, const Stored& stored, const AttentionProblem& inner, bool) {
    const Plan part =
        with_inner(p, way.form, inner, piece, [&](const AttentionProblem& given) { return way.kernel->plan(given, own, threads); });
    if (all.block_q == 0) {
      all.block_q = part.block_q, all.block_k = part.block_k, all.workers = part.workers;
      all.num_splits = own.num_splits = way.form == Form::decode ? 0 : part.num_splits;
    }
    all.workspace_bytes = std::max(all.workspace_bytes, stored.bytes + part.workspace_bytes);
  });
  return all;
}

void absorb_queries(const AttentionProblem& p, Form form, const Piece& piece, const Stored& stored, const AttentionProblem& inner,
                    bool new_sequences, void* stream) {
  const Latents& latents = p.latents;
  if (stored.k && (new_sequences || latents.rope_by_head)) {
    copy_rows(part_of(latents.latent, piece, 0, inner.heads_k), columns_of(stored.k, 0, latents.rank), stream);
    copy_rows(part_of(latents.k_rope, piece, latents.rope_by_head ? piece.head : 0, inner.heads_k),
              columns_of(stored.k, latents.rank, latents.rope_dim), stream);
  }
  const View q = part_of(p.q, piece, piece.head, piece.heads);
  project(inner, columns_of(q, 0, latents.nope_dim), {{latents.w_kc, columns_of(stored.q, 0, latents.rank)}}, piece.head, p.group, true,
          LiveRows::queries, stream);
  if (latents.rope_dim > 0 && form == Form::absorb)
    copy_rows(latents.q_rope ? part_of(latents.q_rope, piece, piece.head, piece.heads) : columns_of(q, latents.nope_dim, latents.rope_dim),
              columns_of(stored.q, latents.rank, latents.rope_dim), stream);
}

void run(const AttentionProblem& p, const Plan& plan, void* workspace, const Execution& execution) {
  const bool decode = plan.num_splits == 0;
  const Form form = decode ? Form::decode : plan.strategy == MlaStrategy::absorb ? Form::absorb : Form::rebuild;
  const Config own{0, 0, plan.num_splits, {}, MlaStrategy::none};
  each_piece(p, form, static_cast<char*>(workspace),
             [&](const Piece& piece, const Stored& stored, const AttentionProblem& inner, bool new_sequences) {
               if (absorbs(form)) {
                 absorb_queries(p, form, piece, stored, inner, new_sequences, execution.stream);
               } else {
                 rebuild(p, piece, stored, inner, execution.stream);
               }
               with_inner(p, form, inner, piece, [&](const AttentionProblem& given) {
                 plan.inner->run(given, plan.inner->plan(given, own, 1), static_cast<char*>(workspace) + stored.bytes, execution);
               });
               if (absorbs(form))
                 project(inner, stored.out, {{p.latents.w_vc, part_of(p.out, piece, piece.head, piece.heads)}}, piece.head, p.group, false,
                         LiveRows::all, execution.stream);
             });
}

bool available() { return some_device_has(8, 0); }

constexpr Kernel kKernels[] = {{"mla_generic_sm80", "sm80", kHonours, available, why_not, plan, run}};

}  // namespace

std::span<const Kernel> generic_mla_attention_kernels() { return kKernels; }

}  // namespace attile::cuda
