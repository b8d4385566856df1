// The forward kernels of the CPU, fastest first: one source, a row for every instruction set that it was compiled for.
#include "core/kernel_table.hpp"
#include "cpu/features.hpp"
#include "cpu/forward_driver.hpp"

namespace attile {

namespace amx {
extern const ForwardIsa kForward[3];  // by parts: bfloat16, float16, float32
}
namespace avx512bf16 {
extern const ForwardIsa kForward;
}
namespace avx512 {
extern const ForwardIsa kForward;
}
namespace avx2 {
extern const ForwardIsa kForward;
}
namespace portable {
extern const ForwardIsa kForward;
}

namespace {

// Everything but float8. A reduced precision is honoured by being more precise.
constexpr uint64_t kHonours = kBias | kAttentionMask | kSegmentIds | kSinks | kCausal | kWindow | kSoftcap | kDropout | kUnnormalized |
                              kLogitsDtype | kVarlenQ | kVarlenK | kLse | kReducedPrecision | kKvLens | kPages;

bool always() { return true; }

extern const Kernel kTable[];

// Which instance of the kernel takes a problem.
using ChooseIsa = const ForwardIsa& (*)(const AttentionProblem&);

#if ATTILE_ISA_AVX512
// bfloat16 by dot products of pairs where the CPU is fast at them, else widened to float32.
const ForwardIsa& choose_avx512(const AttentionProblem& problem) {
#if ATTILE_ISA_AVX512BF16
  if (problem.dtype == DType::bf16 && problem.head_dim % 2 == 0 && fast_bf16_dots()) return avx512bf16::kForward;
#endif
  (void)problem;
  return avx512::kForward;
}
#endif
#if ATTILE_ISA_AMX
// A single vector of rows does not pay for transposing V.
const ForwardIsa& choose_amx(const AttentionProblem& problem) {
  constexpr int64_t kFewRows = 16;
  if (problem.q_seqs.longest * problem.group <= kFewRows) return choose_avx512(problem);
  return amx::kForward[problem.dtype == DType::bf16 ? 0 : problem.dtype == DType::f16 ? 1 : 2];
}

std::string amx_why_not(const AttentionProblem& problem, const Config& config) {
  if (problem.dtype == DType::f64) return "tiles have no float64";
  return forward_why_not(problem, config);
}
#endif
#if ATTILE_ISA_AVX2
const ForwardIsa& choose_avx2(const AttentionProblem&) { return avx2::kForward; }
#endif
const ForwardIsa& choose_portable(const AttentionProblem&) { return portable::kForward; }

using WhyNot = std::string (*)(const AttentionProblem&, const Config&);

template <ChooseIsa kIsa, int kRow>
constexpr Kernel row(const char* name, const char* isa, bool (*available)(), WhyNot why_not = forward_why_not) {
  return {name,
          isa,
          kHonours,
          available,
          why_not,
          [](const AttentionProblem& problem, const Config& config, int threads) {
            Plan plan = plan_forward(kIsa(problem), problem, config, threads);
            plan.kernel = &kTable[kRow];
            return plan;
          },
          [](const AttentionProblem& problem, const Plan& plan, void* workspace, const Execution& execution) {
            run_forward(kIsa(problem), problem, plan, workspace, execution.executor);
          }};
}

// Rows before the next instruction set.
constexpr int kAmxRows = ATTILE_ISA_AMX, kAvx512Rows = kAmxRows + ATTILE_ISA_AVX512, kAvx2Rows = kAvx512Rows + ATTILE_ISA_AVX2;

const Kernel kTable[] = {
#if ATTILE_ISA_AMX
    row<choose_amx, 0>("forward_amx", "amx", has_amx_bf16, amx_why_not),
#endif
#if ATTILE_ISA_AVX512
    row<choose_avx512, kAmxRows>("forward_avx512", "avx512", has_avx512),
#endif
#if ATTILE_ISA_AVX2
    row<choose_avx2, kAvx512Rows>("forward_avx2", "avx2", has_avx2),
#endif
    row<choose_portable, kAvx2Rows>("forward_portable", "portable", always),
};

}  // namespace

std::span<const Kernel> cpu_forward_kernels() { return kTable; }

}  // namespace attile
