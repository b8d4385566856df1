// The products of forward/product.hpp as a cache that is read once wants them:
//
//   scores  S^T[key][row]  = sum_d K[key][d]  Q^T[d][row]
//   values  O^T[dv][row]   = alpha O^T[dv][row] + sum_j V[j][dv] P^T[j][row]
//
// K and V lie in chunks of 16 columns, a row of a chunk being one cache line. Blocks of values divide a chunk, so that V may be K itself.
// With one vector of rows, a block is twice as tall: 25 loads for 24 multiply-adds in scores with AVX-512, 17 for 16 in values.
// A cache that already has the accumulator's type and lies at one stride is not copied: 24 rows are eight pointers and a stride. Its values
// are a line of a row after another, further apart than the prefetchers of L1 follow, so they are asked for some rows ahead.
// `between` is called with the multiply-adds done since, every 16 steps: memory can be asked for at an even pace.
#pragma once

#include "cpu/forward/product.hpp"

namespace attile::ATTILE_ISA {

template <int N>
inline constexpr int kScoreRows = N == 1 ? 2 * kBlockRows : kBlockRows;
template <int N>
inline constexpr int kValueRows = (kVectorBytes == 64 ? 16 : 8) / N;

template <class T, int M, int N, class Between>
inline void decode_scores_block(const T* k, int64_t chunk_stride, const T* q, int64_t dims, T* s, Between between) {
  ProductBlock<T, M, N> block;
  for (int64_t d = 0; d < dims; d += kChunk) {
    if (dims - d >= kChunk) {
#pragma GCC unroll 2
      for (int i = 0; i < kChunk; ++i) block.template step<kChunk>(k + i, q + i * kPanel<T>);
    } else {
      for (int64_t i = 0; i < dims - d; ++i) block.template step<kChunk>(k + i, q + i * kPanel<T>);
    }
    k += chunk_stride;
    q += kChunk * kPanel<T>;
    between(kChunk * M * N);
  }
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(s + m * kPanel<T> + n * kLanes<T>, block.c[m][n]);
}

// Keys [0, keys), a multiple of kBlockStep.
template <class T, int N, int M = kScoreRows<N>, class Between>
inline void decode_scores(const T* k, int64_t chunk_stride, int64_t keys, const T* q, int64_t dims, T* s, Between between) {
  for (; keys >= M; keys -= M) {
    decode_scores_block<T, M, N>(k, chunk_stride, q, dims, s, between);
    k += M * kChunk;
    s += M * kPanel<T>;
  }
  if constexpr (M > kBlockStep) decode_scores<T, N, M - kBlockStep>(k, chunk_stride, keys, q, dims, s, between);
}

// Columns of M rows that lie `stride` elements apart, beginning at multiples of three rows.
template <class T, int M>
struct SpacedRows {
  static_assert(M % 2 == 0);
  static constexpr int kBases = (M + 2) / 3;
  const T* base[kBases];
  int64_t stride;

  inline __attribute__((always_inline)) SpacedRows(const T* first, int64_t rows_apart) : stride(rows_apart) {
#pragma GCC unroll 16
    for (int i = 0; i < kBases; ++i) base[i] = first + 3 * i * rows_apart;
  }
  inline __attribute__((always_inline)) T at(int m, int d) const { return base[m / 3][m % 3 * stride + d]; }
  inline __attribute__((always_inline)) void advance(int64_t d) {
#pragma GCC unroll 16
    for (int i = 0; i < kBases; ++i) base[i] += d;
  }
};

template <class T, int M, int N, class Between>
inline __attribute__((always_inline)) void spaced_columns(ProductBlock<T, M, N>& block, SpacedRows<T, M> rows, const T* q, int64_t dims,
                                                          Between between) {
  constexpr int kStep = 8;
  for (int64_t d = 0; d < dims; d += kStep) {
#pragma GCC unroll 8
    for (int i = 0; i < kStep; ++i) {
      Vec<T> lanes[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) lanes[n] = load<Vec<T>>(q + i * kPanel<T> + n * kLanes<T>);
#pragma GCC unroll 32
      for (int m = 0; m < M; ++m) {
        const Vec<T> x = broadcast<T>(rows.at(m, i));
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) block.c[m][n] = fma(x, lanes[n], block.c[m][n]);
      }
    }
    rows.advance(kStep);
    q += kStep * kPanel<T>;
    between(kStep * M * N);
  }
}

// Scores of keys as they lie in the cache: rows of `latent` columns and of `rope` columns, both multiples of 8.
template <class T>
struct SpacedKeys {
  const T *ckv, *kpe;
  int64_t ckv_stride, kpe_stride;  // elements
  int64_t latent, rope;
};

template <class T, int N, int M = kScoreRows<N>, class Between>
inline void decode_spaced_scores(SpacedKeys<T> k, int64_t keys, const T* q, T* s, Between between) {
  for (; keys >= M; keys -= M) {
    ProductBlock<T, M, N> block;
    spaced_columns<T, M, N>(block, SpacedRows<T, M>(k.ckv, k.ckv_stride), q, k.latent, between);
    if (k.rope > 0) spaced_columns<T, M, N>(block, SpacedRows<T, M>(k.kpe, k.kpe_stride), q + k.latent * kPanel<T>, k.rope, between);
#pragma GCC unroll 32
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) store(s + m * kPanel<T> + n * kLanes<T>, block.c[m][n]);
    k.ckv += M * k.ckv_stride;
    k.kpe += M * k.kpe_stride;
    s += M * kPanel<T>;
  }
  if constexpr (M > kBlockStep) decode_spaced_scores<T, N, M - kBlockStep>(k, keys, q, s, between);
}

inline constexpr int kRowsAhead = 8;

// `chunks` of V, chunk_stride elements apart, their rows row_stride apart. kAhead: how many rows ahead L1 is asked for; 0: not at all.
template <class T, int N, int kAhead = 0, class Between>
inline void decode_values(const T* v, int64_t chunk_stride, int64_t row_stride, int64_t chunks, const T* p, int64_t keys,
                          const Vec<T> (&alpha)[N], T* o, Between between) {
  constexpr int M = kValueRows<N>;
  for (int64_t c = 0; c < chunks * (kChunk / M); ++c) {
    ProductBlock<T, M, N> block;
    const T *row = v + c / (kChunk / M) * chunk_stride + c % (kChunk / M) * M, *weights = p;
    for (int64_t left = keys; left > 0; left -= kChunk) {
      const int64_t here = left < kChunk ? left : kChunk;
      for (int64_t j = 0; j < here; ++j) {
        block.template step<1>(row, weights);
        if constexpr (kAhead > 0) __builtin_prefetch(row + kAhead * row_stride, 0, 3);
        row += row_stride;
        weights += kPanel<T>;
      }
      between(here * M * N);
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        T* to = o + (c * M + m) * kPanel<T> + n * kLanes<T>;
        store(to, fma(load<Vec<T>>(to), alpha[n], block.c[m][n]));
      }
    }
  }
}

}  // namespace attile::ATTILE_ISA
