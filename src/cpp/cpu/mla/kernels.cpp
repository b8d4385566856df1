// The MLA kernels of the CPU, fastest first: a row for every instruction set.
#include "core/kernel_table.hpp"
#include "cpu/features.hpp"
#include "cpu/mla/driver.hpp"

namespace attile {

namespace amx {
extern const MlaIsa kMla[2];  // by parts: bfloat16, float16
}
namespace avx512bf16 {
extern const MlaIsa kMla;
}
namespace avx512 {
extern const MlaIsa kMla;
}
namespace avx2 {
extern const MlaIsa kMla;
}
namespace portable {
extern const MlaIsa kMla;
}

namespace {

constexpr uint64_t kHonours =
    kLatents | kBias | kAttentionMask | kSinks | kCausal | kWindow | kSoftcap | kDropout | kVarlenQ | kVarlenK | kLse;

bool always() { return true; }

using ChooseIsa = const MlaIsa& (*)(const AttentionProblem&);

#if ATTILE_ISA_AVX512
// bfloat16 by dot products of pairs where the CPU is fast at them and every depth is even, else widened to float32.
const MlaIsa& choose_avx512(const AttentionProblem& p) {
#if ATTILE_ISA_AVX512BF16
  const Latents& latents = p.latents;
  const bool even = latents.rank % 2 == 0 && latents.nope_dim % 2 == 0 && latents.rope_dim % 2 == 0;
  if (p.dtype == DType::bf16 && even && fast_bf16_dots()) return avx512bf16::kMla;
#endif
  (void)p;
  return avx512::kMla;
}
#endif
#if ATTILE_ISA_AMX
// A single vector of rows leaves tiles half empty, and float32 in three parts takes 1.6 times as long as vectors do.
const MlaIsa& choose_amx(const AttentionProblem& p) {
  constexpr int64_t kFewRows = 16;
  if (p.dtype == DType::f32 || p.q_seqs.longest * p.heads_q <= kFewRows) return choose_avx512(p);
  return amx::kMla[p.dtype == DType::bf16 ? 0 : 1];
}

std::string amx_why_not(const AttentionProblem& problem, const Config& config) {
  if (problem.dtype == DType::f64) return "tiles have no float64";
  return mla_why_not(problem, config);
}
#endif
#if ATTILE_ISA_AVX2
const MlaIsa& choose_avx2(const AttentionProblem&) { return avx2::kMla; }
#endif
const MlaIsa& choose_portable(const AttentionProblem&) { return portable::kMla; }

using WhyNot = std::string (*)(const AttentionProblem&, const Config&);

template <ChooseIsa kIsa>
constexpr Kernel row(const char* name, const char* isa, bool (*available)(), WhyNot why_not = mla_why_not) {
  return {
      name,
      isa,
      kHonours,
      available,
      why_not,
      [](const AttentionProblem& problem, const Config& config, int threads) { return plan_mla(kIsa(problem), problem, config, threads); },
      [](const AttentionProblem& problem, const Plan& plan, void* workspace, const Execution& execution) {
        run_mla(kIsa(problem), problem, plan, workspace, execution.executor);
      }};
}

constexpr Kernel kTable[] = {
#if ATTILE_ISA_AMX
    row<choose_amx>("mla_amx", "amx", has_amx_bf16, amx_why_not),
#endif
#if ATTILE_ISA_AVX512
    row<choose_avx512>("mla_avx512", "avx512", has_avx512),
#endif
#if ATTILE_ISA_AVX2
    row<choose_avx2>("mla_avx2", "avx2", has_avx2),
#endif
    row<choose_portable>("mla_portable", "portable", always),
};

}  // namespace

std::span<const Kernel> cpu_mla_kernels() { return kTable; }

}  // namespace attile
