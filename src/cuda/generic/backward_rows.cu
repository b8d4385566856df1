#include "cuda/generic/backward_rows.cuh"

#include <algorithm>

#include "cuda/generic/backward_launch.cuh"

namespace attile::cuda::generic {

void run_backward_rows(DType dtype, const BackwardParams& p, int64_t rows, int64_t sinks, void* stream) {
  const int64_t blocks = std::min<int64_t>((rows + 3) / 4, 1 << 16);
  const auto kernel = dtype == DType::bf16 ? backward_rows<Bf16> : dtype == DType::f16 ? backward_rows<F16> : backward_rows<F32>;
  launch_backward(kernel, kBackwardThreads, 0, blocks, stream, p, rows);
  launch_backward(backward_sinks, kBackwardThreads, 0, sinks, stream, p);
}

}  // namespace attile::cuda::generic
