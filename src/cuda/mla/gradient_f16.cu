#include "cuda/mla/gradient_kernel.cuh"

namespace attile::cuda::generic {
namespace {

template <Layout kLayout>
using Traits = RingTraits<F16, kLayout, 2, 4, 64, 32, 4, 2>;

}  // namespace

GradientInstance gradient_f16() { return gradient_instance<Traits<Layout::b_transposed>, Traits<Layout::a_transposed>>(); }

}  // namespace attile::cuda::generic
