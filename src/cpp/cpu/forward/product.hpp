// The two matrix products, C[m][row] = sum_k A[m][k] B[k][row], lanes being rows:
//
//   scores  S^T[key][row]  = sum_d K[key][d]   Q^T[d][row]
//   values  O^T[dv][row]  += sum_j V[j][dv]    P^T[j][row]
//
// One block holds kBlockRows x N vectors of C in registers; a step loads N vectors of B and broadcasts kBlockRows scalars of A,
// which costs kBlockRows + N loads for kBlockRows * N multiply-adds: 14 for 24 with AVX-512, 8 for 12 with AVX2. B (a panel of
// Q^T or P^T, at most 16 KB at head_dim 128) stays in L1, A streams from L2 at 2 bytes a cycle.
// With bfloat16 pairs an element of A and B is two numbers, neighbours along k, and a step does twice as much.
// Values are summed a tile at a time and then added to O: two short sums lose less than one long one.
// `between` is called once every kChunk steps, for what is to be asked for in good time. These steps have no branch: the end of a loop of
// few steps is often mispredicted, which a core shows that shares its scheduler with another thread.
#pragma once

#include "cpu/forward/panel.hpp"

namespace attile::ATTILE_ISA {

template <class T, int M, int N>
struct ProductBlock {
  Vec<T> c[M][N];

  inline __attribute__((always_inline)) ProductBlock() {
#pragma GCC unroll 32
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) c[m][n] = Vec<T>{};
  }

  template <int RowStride>
  inline __attribute__((always_inline)) void step(const T* a, const T* b) {
    Vec<T> row[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) row[n] = load<Vec<T>>(b + n * kLanes<T>);
#pragma GCC unroll 32
    for (int m = 0; m < M; ++m) {
      const Vec<T> x = broadcast<T>(a[m * RowStride]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        if constexpr (kBf16Pairs) {
          c[m][n] = dot_pairs(x, row[n], c[m][n]);
        } else {
          c[m][n] = fma(x, row[n], c[m][n]);
        }
      }
    }
  }
};

struct Nothing {
  void operator()() const {}
};

// s: [M][kPanel]
template <class T, int M, int N, class Between>
inline void scores_block(const T* k, int64_t chunk_stride, const T* q, int64_t head_dim, T* s, Between& between) {
  ProductBlock<T, M, N> block;
  int64_t d = 0;
  for (; d + kChunk <= head_dim; d += kChunk) {
    between();
#pragma GCC unroll 16
    for (int i = 0; i < kChunk; ++i) block.template step<kChunk>(k + i, q + i * kPanel<T>);
    k += chunk_stride;
    q += kChunk * kPanel<T>;
  }
  for (; d < head_dim; ++d) {
    block.template step<kChunk>(k, q);
    ++k;
    q += kPanel<T>;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(s + m * kPanel<T> + n * kLanes<T>, block.c[m][n]);
}

// o: [M][kPanel], o = o * alpha + sum
template <class T, int M, int N, class Between>
inline void values_block(const T* v, int64_t v_row, const T* p, int64_t keys, const Vec<T> (&alpha)[N], T* o, Between& between) {
  ProductBlock<T, M, N> block;
  int64_t j = 0;
  for (; j + kChunk <= keys; j += kChunk) {
    between();
#pragma GCC unroll 16
    for (int i = 0; i < kChunk; ++i) {
      block.template step<1>(v, p);
      v += v_row;
      p += kPanel<T>;
    }
  }
  for (; j < keys; ++j) {
    block.template step<1>(v, p);
    v += v_row;
    p += kPanel<T>;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      T* to = o + m * kPanel<T> + n * kLanes<T>;
      store(to, fma(load<Vec<T>>(to), alpha[n], block.c[m][n]));
    }
  }
}

// Scores of keys [0, keys), keys a multiple of kBlockStep.
template <class T, int N, int M = kBlockRows, class Between = const Nothing>
inline void scores_product(const T* k, int64_t chunk_stride, int64_t keys, const T* q, int64_t head_dim, T* s,
                           Between& between = Nothing{}) {
  for (; keys >= M; keys -= M) {
    scores_block<T, M, N>(k, chunk_stride, q, head_dim, s, between);
    k += M * kChunk;
    s += M * kPanel<T>;
  }
  if constexpr (M > kBlockStep) scores_product<T, N, M - kBlockStep>(k, chunk_stride, keys, q, head_dim, s, between);
}

// Columns [0, columns) of V, columns a multiple of kBlockStep.
template <class T, int N, int M = kBlockRows, class Between>
inline void values_product(const T* v, int64_t v_row, int64_t columns, const T* p, int64_t keys, const Vec<T> (&alpha)[N], T* o,
                           Between& between) {
  for (; columns >= M; columns -= M) {
    values_block<T, M, N>(v, v_row, p, keys, alpha, o, between);
    v += M;
    o += M * kPanel<T>;
  }
  if constexpr (M > kBlockStep) values_product<T, N, M - kBlockStep>(v, v_row, columns, p, keys, alpha, o, between);
}

}  // namespace attile::ATTILE_ISA
