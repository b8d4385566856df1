#include "cuda/mla/project_kernel.cuh"

namespace attile::cuda::generic {
namespace {

template <bool kTransposed>
using Traits = ProjectTraits<F16, kTransposed, 2, 4, 64, 32, 4, 2>;

}  // namespace

ProjectInstance project_f16(bool transposed) { return instance_of<Traits>(transposed); }

}  // namespace attile::cuda::generic
