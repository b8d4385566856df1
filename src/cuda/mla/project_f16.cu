#include "cuda/mla/project_kernel.cuh"

namespace attile::cuda::generic {
namespace {

template <Layout kLayout>
using Traits = RingTraits<F16, kLayout, 2, 4, 64, 32, 4, 2>;

}  // namespace

ProjectInstance project_f16(bool transposed) { return instance_of<Traits<Layout::plain>, Traits<Layout::b_transposed>>(transposed); }

}  // namespace attile::cuda::generic
