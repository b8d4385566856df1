// The forward kernels of the CPU, fastest first: one source, a row for every instruction set that it was compiled for.
#include "core/kernel_table.hpp"
#include "cpu/features.hpp"
#include "cpu/forward_driver.hpp"

namespace attile {

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
                              kLogitsDtype | kVarlenQ | kVarlenK | kLse | kReducedPrecision;

bool always() { return true; }

extern const Kernel kTable[];

std::string bf16_why_not(const AttentionProblem& problem, const Config& config) {
  if (problem.dtype != DType::bf16) return "takes bfloat16 only";
  if (problem.head_dim % 2 != 0) return "takes even head dims only";
  if (!fast_bf16_dots()) return "bfloat16 dot products have half the rate of float32 multiply-adds on this CPU";
  return forward_why_not(problem, config);
}

template <const ForwardIsa& kIsa, int kRow, auto kWhyNot = forward_why_not>
constexpr Kernel row(const char* name, const char* isa, bool (*available)()) {
  return {name,
          isa,
          kHonours,
          available,
          kWhyNot,
          [](const AttentionProblem& problem, const Config& config, int threads) {
            Plan plan = plan_forward(kIsa, problem, config, threads);
            plan.kernel = &kTable[kRow];
            return plan;
          },
          [](const AttentionProblem& problem, const Plan& plan, void* workspace, const attile_executor* executor) {
            run_forward(kIsa, problem, plan, workspace, executor);
          }};
}

// Rows before the next instruction set.
constexpr int kBf16Rows = ATTILE_ISA_AVX512BF16, kAvx512Rows = kBf16Rows + ATTILE_ISA_AVX512;
constexpr int kAvx2Rows = kAvx512Rows + ATTILE_ISA_AVX2;

const Kernel kTable[] = {
#if ATTILE_ISA_AVX512BF16
    row<avx512bf16::kForward, 0, bf16_why_not>("forward_avx512bf16", "avx512bf16", has_avx512_bf16),
#endif
#if ATTILE_ISA_AVX512
    row<avx512::kForward, kBf16Rows>("forward_avx512", "avx512", has_avx512),
#endif
#if ATTILE_ISA_AVX2
    row<avx2::kForward, kAvx512Rows>("forward_avx2", "avx2", has_avx2),
#endif
    row<portable::kForward, kAvx2Rows>("forward_portable", "portable", always),
};

}  // namespace

std::span<const Kernel> cpu_forward_kernels() { return kTable; }

}  // namespace attile
