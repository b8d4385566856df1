// Two states of attention over disjoint sets of keys, joined:
//
//   lse = log(exp(lse_a) + exp(lse_b));  out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b
//
// lse of -inf or +inf is an empty side, whose out is not used whatever it holds. A warp has a row of head_dim_v; cost: three times
// the bytes of out.
#include "cuda/combine.hpp"

#include <cmath>

#include "cuda/device.hpp"
#include "cuda/tile/element.cuh"

namespace attile::cuda {
namespace {

constexpr int kThreads = 256;

struct Side {
  const char* out;
  const char* lse;
  int64_t out_stride[3], lse_stride[3];  // bytes; of batch, token, head, and of batch, head, token
};

struct Params {
  Side a, b;
  char *out, *lse;
  int64_t out_stride[3], lse_stride[3];
  int64_t rows, tokens, heads, dims;
};

__device__ int64_t row_offset(const int64_t (&stride)[3], int64_t x, int64_t y, int64_t z) {
  return x * stride[0] + y * stride[1] + z * stride[2];
}

__device__ double load_double(const char* p) { return __longlong_as_double(static_cast<long long>(load_unaligned<uint64_t>(p))); }
template <class Accumulator>
__device__ Accumulator load_lse(const char* p) {
  Accumulator x;
  if constexpr (sizeof(Accumulator) == 8) {
    x = load_double(p);
  } else {
    x = __uint_as_float(load_unaligned<uint32_t>(p));
  }
  return isinf(x) ? -static_cast<Accumulator>(INFINITY) : x;
}

template <class Element, class Accumulator>
__device__ Accumulator load_element(const char* p) {
  if constexpr (sizeof(Accumulator) == 8) {
    return load_double(p);
  } else if constexpr (Element::kBytes == 4) {
    return __uint_as_float(load_unaligned<uint32_t>(p));
  } else {
    return Element::unpack(load_unaligned<uint16_t>(p)).x;
  }
}

struct F64 {
  static constexpr int kBytes = 8;
};

template <class Element, class Accumulator>
__global__ void __launch_bounds__(kThreads) merge_kernel(const __grid_constant__ Params p) {
  const Accumulator empty = -static_cast<Accumulator>(INFINITY);
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t row = blockIdx.x * (kThreads / 32) + threadIdx.x / 32; row < p.rows; row += warps) {
    const int64_t h = row % p.heads, t = row / p.heads % p.tokens, b = row / p.heads / p.tokens;
    const Accumulator a_lse = load_lse<Accumulator>(p.a.lse + row_offset(p.a.lse_stride, b, h, t));
    const Accumulator b_lse = load_lse<Accumulator>(p.b.lse + row_offset(p.b.lse_stride, b, h, t));
    const bool a_empty = a_lse == empty, b_empty = b_lse == empty;
    // A NaN of either side is seen: fmax would drop it.
    const Accumulator top = a_empty ? b_lse : b_empty ? a_lse : isnan(a_lse) ? a_lse : a_lse > b_lse ? a_lse : b_lse;
    const Accumulator a_part = a_empty ? 0 : exp(a_lse - top), b_part = b_empty ? 0 : exp(b_lse - top), total = a_part + b_part;
    const Accumulator a_weight = a_part / total, b_weight = b_part / total;
    const char* a_out = p.a.out + row_offset(p.a.out_stride, b, t, h);
    const char* b_out = p.b.out + row_offset(p.b.out_stride, b, t, h);
    char* out = p.out + row_offset(p.out_stride, b, t, h);
    for (int64_t d = threadIdx.x % 32; d < p.dims; d += 32) {
      Accumulator x = 0;
      if (!a_empty) x += a_weight * load_element<Element, Accumulator>(a_out + d * Element::kBytes);
      if (!b_empty) x += b_weight * load_element<Element, Accumulator>(b_out + d * Element::kBytes);
      if constexpr (sizeof(Accumulator) == 8) {
        store_unaligned<uint64_t>(out + d * 8, static_cast<uint64_t>(__double_as_longlong(x)));
      } else {
        store_pair<Element>(out + d * Element::kBytes, x, x, false);
      }
    }
    if (threadIdx.x % 32 != 0) continue;
    const Accumulator joined = a_empty && b_empty ? empty : top + log(total);
    char* lse = p.lse + row_offset(p.lse_stride, b, h, t);
    if constexpr (sizeof(Accumulator) == 8) {
      store_unaligned<uint64_t>(lse, static_cast<uint64_t>(__double_as_longlong(joined)));
    } else {
      store_unaligned<uint32_t>(lse, __float_as_uint(joined));
    }
  }
}

void copy_strides(const View& v, int64_t (&stride)[3]) {
  for (int i = 0; i < 3; ++i) stride[i] = v.stride[i] * static_cast<int64_t>(size_of(v.dtype));
}

Side side_of(const View& out, const View& lse) {
  Side s{};
  s.out = out.data;
  s.lse = lse.data;
  copy_strides(out, s.out_stride);
  copy_strides(lse, s.lse_stride);
  return s;
}

}  // namespace

void merge_states(const View& out_a, const View& lse_a, const View& out_b, const View& lse_b, const View& out, const View& lse,
                  void* stream) {
  Params p{};
  p.a = side_of(out_a, lse_a);
  p.b = side_of(out_b, lse_b);
  p.out = out.data;
  p.lse = lse.data;
  copy_strides(out, p.out_stride);
  copy_strides(lse, p.lse_stride);
  p.tokens = out.shape[1], p.heads = out.shape[2], p.dims = out.shape[3];
  p.rows = out.shape[0] * p.tokens * p.heads;
  if (p.rows == 0) return;
  constexpr int64_t kRows = kThreads / 32, kMostBlocks = 1 << 16;
  const int64_t blocks = (p.rows + kRows - 1) / kRows;
  const unsigned grid = static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
  const cudaStream_t to = static_cast<cudaStream_t>(stream);
  switch (out.dtype) {
    case DType::f64:
      merge_kernel<F64, double><<<grid, kThreads, 0, to>>>(p);
      break;
    case DType::f32:
      merge_kernel<F32, float><<<grid, kThreads, 0, to>>>(p);
      break;
    case DType::f16:
      merge_kernel<F16, float><<<grid, kThreads, 0, to>>>(p);
      break;
    default:
      merge_kernel<Bf16, float><<<grid, kThreads, 0, to>>>(p);
  }
  check_launch("launching merge_states");
}

}  // namespace attile::cuda
