#include "cuda/mla/sums.hpp"

#include "cuda/device.hpp"
#include "cuda/generic/backward_work.cuh"
#include "cuda/generic/problem_params.hpp"

namespace attile::cuda::generic {
namespace {

constexpr int kThreads = 128;

struct SumParams {
  Elementwise from, to;  // [batch, row, head, key] are here an array's own four axes
  int32_t extent[4];
};

Elementwise elements_of(const View& v) {
  const int64_t size = v.dtype == DType::none ? 0 : static_cast<int64_t>(size_of(v.dtype));
  return {v.data, v.stride[0] * size, v.stride[2] * size, v.stride[1] * size, v.stride[3] * size, v.dtype, false, 0};
}

__device__ __forceinline__ const char* place(const Elementwise& x, int a, int b, int c, int d) {
  return x.data + a * x.batch + b * x.row + c * x.head + d * x.key;
}

// A block a token.
__global__ void __launch_bounds__(kThreads) add_heads_kernel(const __grid_constant__ SumParams p) {
  const int b = static_cast<int>(blockIdx.x) / p.extent[1], t = static_cast<int>(blockIdx.x) - b * p.extent[1];
  for (int d = static_cast<int>(threadIdx.x); d < p.extent[3]; d += kThreads) {
    float sum = 0.f;
    for (int h = 0; h < p.extent[2]; ++h) sum += read_bias(p.from, place(p.from, b, t, h, d));
    *reinterpret_cast<float*>(const_cast<char*>(place(p.to, b, t, 0, d))) += sum;
  }
}

// A block a row of the last axis.
__global__ void __launch_bounds__(kThreads) round_sums_kernel(const __grid_constant__ SumParams p) {
  int row = static_cast<int>(blockIdx.x);
  const int c = row % p.extent[2];
  row /= p.extent[2];
  const int b = row % p.extent[1], a = row / p.extent[1];
  for (int d = static_cast<int>(threadIdx.x); d < p.extent[3]; d += kThreads) {
    const float sum = p.from.data ? *reinterpret_cast<const float*>(place(p.from, a, b, c, d)) : 0.f;
    store_number(p.to, const_cast<char*>(place(p.to, a, b, c, d)), sum);
  }
}

SumParams params_of(const View& from, const View& to, const View& extents) {
  SumParams p{elements_of(from), elements_of(to), {}};
  for (int i = 0; i < 4; ++i) p.extent[i] = static_cast<int32_t>(extents.shape[i]);
  return p;
}

bool empty(const View& v) { return v.shape[0] * v.shape[1] * v.shape[2] * v.shape[3] == 0; }

}  // namespace

void add_heads(const View& from, const View& sums, void* stream) {
  if (empty(from)) return;
  add_heads_kernel<<<static_cast<unsigned>(from.shape[0] * from.shape[1]), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      params_of(from, sums, from));
  check_launch("launching add_heads");
}

void round_sums(const View& sums, const View& to, void* stream) {
  if (empty(to)) return;
  round_sums_kernel<<<static_cast<unsigned>(to.shape[0] * to.shape[1] * to.shape[2]), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      params_of(sums, to, to));
  check_launch("launching round_sums");
}

}  // namespace attile::cuda::generic
