// Which keys a query sees: key k of query i if k < seqlen_k and i + low <= k <= i + high.
// Three questions: keys (the range of key tiles that query rows need), full (the range that needs no test), and seen or not.
#pragma once

#include <cmath>
#include <cstdint>

namespace attile::cuda::sm90 {

struct TileRange {
  int begin, end;
};

struct Band {
  int seqlen_k, low, high;

  static constexpr int kUnlimited = 1 << 29;

  // Rows [q0, q1); at least one tile, masked throughout if they see no key.
  template <int N>
  __device__ TileRange keys(int q0, int q1) const {
    const int end = max(1, (min(seqlen_k, q1 + high) + N - 1) / N);
    return {min(max(0, q0 + low) / N, end - 1), end};
  }
  template <int N>
  __device__ TileRange full(int q0, int q1) const {
    return {(max(0, q1 - 1 + low) + N - 1) / N, max(0, min(seqlen_k, q0 + high + 1)) / N};
  }
};

// Scores of keys that the row does not see, or that do not exist, become -inf. s: as SoftmaxState; row: this thread's first.
// kEnd: test for the end of the keys (a causal band aligned bottom right ends there by itself).
template <int N, bool kEnd, bool kHigh, bool kLow, int kRegs>
__device__ __forceinline__ void mask_scores(float (&s)[kRegs], const Band& band, int row, int key0) {
  static_assert(kRegs == N / 2);
  const int column0 = key0 + 2 * (threadIdx.x % 4);
  const int end = band.seqlen_k - column0, high = row + band.high + 1 - column0, low = row + band.low - column0;
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int i = 0; i < N / 8; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = s[4 * i + 2 * r + e];
        // The second row is 8 below the first: its comparisons with the diagonals are those of the 8 columns before.
        const int column = 8 * i + e, diagonal = 8 * (i - r) + e;
        if (kHigh && diagonal >= high) x = -INFINITY;
        if (kLow && diagonal < low) x = -INFINITY;
        if (kEnd && column >= end) x = -INFINITY;
      }
}

// The same for rows that are not 8 positions apart. queries: of this thread's rows.
template <int N, int kRegs>
__device__ __forceinline__ void mask_packed_scores(float (&s)[kRegs], const Band& band, const int (&queries)[2], int key0) {
  const int column0 = key0 + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int begin = queries[r] + band.low - column0, end = min(band.seqlen_k, queries[r] + band.high + 1) - column0;
#pragma unroll
    for (int i = 0; i < N / 8; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (8 * i + e < begin || 8 * i + e >= end) s[4 * i + 2 * r + e] = -INFINITY;
  }
}

}  // namespace attile::cuda::sm90
