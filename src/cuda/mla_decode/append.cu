// New rows into the pages of two caches, a warp a token. Places that the host knows travel with the launch, some hundreds at a time, so that
// nothing has to lie in memory; else each warp works its own out. Cost: each row read and written once.
#include "cuda/mla_decode/append.hpp"

#include <algorithm>

#include "cuda/device.hpp"
#include "cuda/generic/problem_params.hpp"
#include "cuda/generic/schedule.cuh"

namespace attile::cuda {
namespace {

using generic::Indices;
using generic::read_index;
using generic::Tensor;

constexpr int kThreads = 128, kWarps = kThreads / 32, kPlaces = 384;

struct AppendParams {
  Tensor tokens[2], caches[2];
  int32_t bytes[2];  // of a row
  int64_t first, count;
  int64_t pages, page_size, sequences, indices_size;
  Indices batch, positions, indices, indptr, last;
};
struct Places {
  TokenPlace place[kPlaces];
};

// {-1, 0} where there is none.
__device__ __forceinline__ TokenPlace find_place(const AppendParams& p, int64_t token) {
  const TokenPlace none{-1, 0};
  const int64_t b = read_index(p.batch, token), position = read_index(p.positions, token);
  if (b < 0 || b >= p.sequences || position < 0) return none;
  const int64_t begin = read_index(p.indptr, b), count = read_index(p.indptr, b + 1) - begin;
  if (begin < 0 || count <= 0 || position >= (count - 1) * p.page_size + read_index(p.last, b)) return none;
  const int64_t n = position / p.page_size;
  if (n >= count || begin + n >= p.indices_size) return none;
  const int64_t page = read_index(p.indices, begin + n);
  if (page < 0 || page >= p.pages) return none;
  return {static_cast<int32_t>(page), static_cast<int32_t>(position - n * p.page_size)};
}

template <class Word>
__device__ __forceinline__ void copy_words(const char* from, char* to, int bytes) {
  for (int i = threadIdx.x % 32 * sizeof(Word); i < bytes; i += 32 * sizeof(Word))
    *reinterpret_cast<Word*>(to + i) = *reinterpret_cast<const Word*>(from + i);
}

template <bool kPlaced>
__global__ void __launch_bounds__(kThreads) append_kernel(const __grid_constant__ AppendParams p, const __grid_constant__ Places places) {
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (own >= p.count) return;
  const int64_t token = p.first + own;
  const TokenPlace place = kPlaced ? places.place[own] : find_place(p, token);
  if (place.page < 0) return;
  for (int i = 0; i < 2; ++i) {
    const char* from = p.tokens[i].data + token * p.tokens[i].head;
    char* to = p.caches[i].data + place.page * p.caches[i].row + place.row * p.caches[i].head;
    switch (min(p.tokens[i].granule, p.caches[i].granule)) {
      case 16:
        if (p.bytes[i] % 16 == 0) {
          copy_words<uint4>(from, to, p.bytes[i]);
          break;
        }
        [[fallthrough]];
      case 4:
        if (p.bytes[i] % 4 == 0) {
          copy_words<uint32_t>(from, to, p.bytes[i]);
          break;
        }
        [[fallthrough]];
      default:
        copy_words<char>(from, to, p.bytes[i]);
    }
  }
}

template <bool kPlaced>
void launch(const AppendParams& p, const Places& places, void* stream) {
  const auto blocks = static_cast<unsigned>((p.count + kWarps - 1) / kWarps);
  append_kernel<kPlaced><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p, places);
  check_launch("launching append_paged");
}

}  // namespace

void append_paged(const PagedAppend& a, void* stream) {
  AppendParams p{};
  for (int i = 0; i < 2; ++i) {
    p.tokens[i] = generic::tensor_of(a.tokens[i]);
    p.caches[i] = generic::tensor_of(a.caches[i]);
    p.bytes[i] = static_cast<int32_t>(a.tokens[i].shape[3] * static_cast<int64_t>(size_of(a.tokens[i].dtype)));
  }
  p.pages = a.caches[0].shape[1], p.page_size = a.caches[0].shape[2];
  p.sequences = a.kv_last_page_len.size, p.indices_size = a.kv_indices.size;
  p.batch = generic::indices_of(a.batch_indices), p.positions = generic::indices_of(a.positions);
  p.indices = generic::indices_of(a.kv_indices), p.indptr = generic::indices_of(a.kv_indptr), p.last = generic::indices_of(a.kv_last_page_len);
  const int64_t count = a.tokens[0].shape[2];
  const int64_t step = a.placed ? kPlaces : int64_t{1} << 30;
  for (p.first = 0; p.first < count; p.first += step) {
    p.count = std::min(count - p.first, step);
    Places places{};
    if (a.placed) {
      std::copy_n(a.places.begin() + p.first, p.count, places.place);
      launch<true>(p, places, stream);
    } else {
      launch<false>(p, places, stream);
    }
  }
}

}  // namespace attile::cuda
