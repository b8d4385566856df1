// The attention kernels of the CPU, fastest first: of each instruction set the one for few query rows, then the one for any problem.
#include "core/kernel_table.hpp"
#include "cpu/decode/driver.hpp"
#include "cpu/features.hpp"
#include "cpu/forward_driver.hpp"

namespace attile {

namespace amx {
extern const ForwardIsa kForward[3];  // by parts: bfloat16, float16, float32
}
namespace avx512bf16 {
extern const ForwardIsa kForward;
extern const DecodeIsa kDecode;
}
namespace avx512 {
extern const ForwardIsa kForward;
extern const DecodeIsa kDecode;
}
namespace avx2 {
extern const ForwardIsa kForward;
extern const DecodeIsa kDecode;
}
namespace portable {
extern const ForwardIsa kForward;
extern const DecodeIsa kDecode;
}

namespace {

// Everything but float8. A reduced precision is honoured by being more precise.
constexpr uint64_t kHonours = kBias | kAttentionMask | kSegmentIds | kSinks | kCausal | kWindow | kSoftcap | kDropout | kUnnormalized |
                              kLogitsDtype | kVarlenQ | kVarlenK | kLse | kReducedPrecision | kKvLens | kPages;

// What comes with a cache; the rest is left to the forward kernels.
constexpr uint64_t kDecodeHonours = kSinks | kCausal | kWindow | kSoftcap | kVarlenK | kLse | kReducedPrecision | kKvLens | kPages;

bool always() { return true; }

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
  if (size_of(problem.dtype) > 2) return "takes float16 and bfloat16 only";
  return forward_why_not(problem, config);
}

// float32 as six products of tiles lost more than half of its speed where a neighbour used the core (docs/cpu-forward.md). The vectors
// were not timed beside it there, so they come first, and this is for those who ask for it.
std::string amx_float32_why_not(const AttentionProblem& problem, const Config& config) {
  if (problem.dtype != DType::f32) return "takes float32 only";
  return forward_why_not(problem, config);
}
#endif
#if ATTILE_ISA_AVX2
const ForwardIsa& choose_avx2(const AttentionProblem&) { return avx2::kForward; }
#endif
const ForwardIsa& choose_portable(const AttentionProblem&) { return portable::kForward; }

using WhyNot = std::string (*)(const AttentionProblem&, const Config&);

template <ChooseIsa kIsa>
constexpr Kernel row(const char* name, const char* isa, bool (*available)(), WhyNot why_not = forward_why_not) {
  return {name,
          isa,
          kHonours,
          available,
          why_not,
          [](const AttentionProblem& problem, const Config& config, int threads) {
            return plan_forward(kIsa(problem), problem, config, threads);
          },
          [](const AttentionProblem& problem, const Plan& plan, void* workspace, const Execution& execution) {
            run_forward(kIsa(problem), problem, plan, workspace, execution.executor);
          }};
}

using ChooseDecodeIsa = const DecodeIsa& (*)(const AttentionProblem&);

#if ATTILE_ISA_AVX512
const DecodeIsa& choose_decode_avx512(const AttentionProblem& problem) {
#if ATTILE_ISA_AVX512BF16
  if (problem.dtype == DType::bf16 && fast_bf16_dots()) return avx512bf16::kDecode;
#endif
  (void)problem;
  return avx512::kDecode;
}
#endif
#if ATTILE_ISA_AVX2
const DecodeIsa& choose_decode_avx2(const AttentionProblem&) { return avx2::kDecode; }
#endif
const DecodeIsa& choose_decode_portable(const AttentionProblem&) { return portable::kDecode; }

template <ChooseDecodeIsa kIsa>
constexpr Kernel decode_row(const char* name, const char* isa, bool (*available)()) {
  return {name,
          isa,
          kDecodeHonours,
          available,
          decode_why_not,
          [](const AttentionProblem& problem, const Config& config, int threads) {
            return plan_decode(kIsa(problem), problem, config, threads);
          },
          [](const AttentionProblem& problem, const Plan& plan, void* workspace, const Execution& execution) {
            run_decode(kIsa(problem), problem, plan, workspace, execution.executor);
          }};
}

const Kernel kTable[] = {
#if ATTILE_ISA_AVX512
    decode_row<choose_decode_avx512>("decode_avx512", "avx512", has_avx512),
#endif
#if ATTILE_ISA_AMX
    row<choose_amx>("forward_amx", "amx", has_amx_bf16, amx_why_not),
#endif
#if ATTILE_ISA_AVX512
    row<choose_avx512>("forward_avx512", "avx512", has_avx512),
#endif
#if ATTILE_ISA_AMX
    row<choose_amx>("forward_amx_float32", "amx", has_amx_bf16, amx_float32_why_not),
#endif
#if ATTILE_ISA_AVX2
    decode_row<choose_decode_avx2>("decode_avx2", "avx2", has_avx2),
    row<choose_avx2>("forward_avx2", "avx2", has_avx2),
#endif
    decode_row<choose_decode_portable>("decode_portable", "portable", always),
    row<choose_portable>("forward_portable", "portable", always),
};

}  // namespace

std::span<const Kernel> cpu_forward_kernels() { return kTable; }

}  // namespace attile
