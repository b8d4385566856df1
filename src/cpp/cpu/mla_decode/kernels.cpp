// The kernels of MLA decoding on the CPU, fastest first: one source, a row for every instruction set that it was compiled for.
#include "cpu/features.hpp"
#include "cpu/mla_decode/driver.hpp"

namespace attile {

namespace amx {
extern const MlaDecodeIsa kMlaDecode;
}
namespace avx512bf16 {
extern const MlaDecodeIsa kMlaDecode;
}
namespace avx512 {
extern const MlaDecodeIsa kMlaDecode;
}
namespace avx2 {
extern const MlaDecodeIsa kMlaDecode;
}
namespace portable {
extern const MlaDecodeIsa kMlaDecode;
}

namespace {

// Everything that mla_decode can ask for but float8.
constexpr uint64_t kHonours = kSinks | kCausal | kSoftcap | kVarlenQ | kLse | kKvLens | kPages;

bool always() { return true; }

// Which instance of the kernel takes a problem.
using ChooseIsa = const MlaDecodeIsa& (*)(const MlaDecodeProblem&);

#if ATTILE_ISA_AMX
const MlaDecodeIsa& choose_amx(const MlaDecodeProblem&) { return amx::kMlaDecode; }
std::string amx_why_not(const AttentionProblem& problem, const Config& config) {
  if (problem.dtype != DType::bf16) return "takes bfloat16 only";
  return mla_decode_why_not(problem, config);
}
#endif
#if ATTILE_ISA_AVX512
// bfloat16 by dot products of pairs where the CPU is fast at them, else widened to float32.
const MlaDecodeIsa& choose_avx512(const MlaDecodeProblem& problem) {
#if ATTILE_ISA_AVX512BF16
  if (problem.dtype == DType::bf16 && fast_bf16_dots()) return avx512bf16::kMlaDecode;
#endif
  (void)problem;
  return avx512::kMlaDecode;
}
#endif
#if ATTILE_ISA_AVX2
const MlaDecodeIsa& choose_avx2(const MlaDecodeProblem&) { return avx2::kMlaDecode; }
#endif
const MlaDecodeIsa& choose_portable(const MlaDecodeProblem&) { return portable::kMlaDecode; }

template <ChooseIsa kIsa>
constexpr Kernel row(const char* name, const char* isa, bool (*available)(),
                     std::string (*why_not)(const AttentionProblem&, const Config&) = mla_decode_why_not) {
  return {name,
          isa,
          kHonours,
          available,
          why_not,
          [](const AttentionProblem& problem, const Config& config, int threads) {
            const MlaDecodeProblem& p = mla_decode(problem);
            return plan_mla_decode(kIsa(p), p, config, threads);
          },
          [](const AttentionProblem& problem, const Plan& plan, void* workspace, const Execution& execution) {
            const MlaDecodeProblem& p = mla_decode(problem);
            run_mla_decode(kIsa(p), p, plan, workspace, execution.executor);
          }};
}

const Kernel kTable[] = {
#if ATTILE_ISA_AMX
    row<choose_amx>("mla_decode_amx", "amx", has_amx_bf16, amx_why_not),
#endif
#if ATTILE_ISA_AVX512
    row<choose_avx512>("mla_decode_avx512", "avx512", has_avx512),
#endif
#if ATTILE_ISA_AVX2
    row<choose_avx2>("mla_decode_avx2", "avx2", has_avx2),
#endif
    row<choose_portable>("mla_decode_portable", "portable", always),
};

}  // namespace

std::span<const Kernel> cpu_mla_decode_kernels() { return kTable; }

}  // namespace attile
