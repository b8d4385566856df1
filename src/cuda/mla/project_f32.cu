#include "cuda/mla/project_kernel.cuh"

namespace attile::cuda::generic {
namespace {

template <bool kTransposed>
using Traits = ProjectTraits<F32, kTransposed, 2, 2, 32, 32, 4, 2>;

}  // namespace

ProjectInstance project_f32(bool transposed) { return instance_of<Traits>(transposed); }

}  // namespace attile::cuda::generic
