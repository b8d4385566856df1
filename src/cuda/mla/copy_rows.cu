#include "cuda/mla/copy_rows.hpp"

#include <algorithm>

#include "cuda/device.hpp"
#include "cuda/generic/problem_params.hpp"

namespace attile::cuda::generic {
namespace {

constexpr int kThreads = 128;

struct CopyParams {
  Tensor from, to;
  int32_t rows, heads, words;  // words of a row
};

// A block copies the heads of one token.
template <class Word>
__global__ void __launch_bounds__(kThreads) copy_rows_kernel(const __grid_constant__ CopyParams p) {
  const int b = static_cast<int>(blockIdx.x) / p.rows, t = static_cast<int>(blockIdx.x) - b * p.rows;
  const char* from = p.from.data + b * p.from.batch + t * p.from.row;
  char* to = p.to.data + b * p.to.batch + t * p.to.row;
  for (int i = static_cast<int>(threadIdx.x); i < p.heads * p.words; i += kThreads) {
    const int head = i / p.words, word = i - head * p.words;
    reinterpret_cast<Word*>(to + head * p.to.head)[word] = reinterpret_cast<const Word*>(from + head * p.from.head)[word];
  }
}

template <class Word>
void launch(CopyParams p, int64_t blocks, int64_t row_bytes, void* stream) {
  p.words = static_cast<int32_t>(row_bytes / static_cast<int64_t>(sizeof(Word)));
  copy_rows_kernel<Word><<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
}

}  // namespace

void copy_rows(const View& from, const View& to, void* stream) {
  const int64_t row_bytes = to.shape[3] * static_cast<int64_t>(size_of(to.dtype)), blocks = to.shape[0] * to.shape[1];
  if (blocks * to.shape[2] * row_bytes == 0) return;
  const CopyParams p{tensor_of(from), tensor_of(to), static_cast<int32_t>(to.shape[1]), static_cast<int32_t>(to.shape[2]), 0};
  const int64_t word = std::min<int64_t>({p.from.granule, p.to.granule, row_bytes & -row_bytes});
  if (word == 16) {
    launch<uint4>(p, blocks, row_bytes, stream);
  } else if (word >= 4) {
    launch<uint32_t>(p, blocks, row_bytes, stream);
  } else if (word == 2) {
    launch<uint16_t>(p, blocks, row_bytes, stream);
  } else {
    launch<uint8_t>(p, blocks, row_bytes, stream);
  }
  check_launch("launching copy_rows");
}

}  // namespace attile::cuda::generic
