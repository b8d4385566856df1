// Which keys a query sees: key k of query i if k < seqlen_k and i + low <= k <= i + high.
// Three questions: keys (the range of key tiles that a query tile needs), full (no test needed), and (row, tile): seen or not.
#pragma once

#include <cmath>
#include <cstdint>

struct Band {
  int seqlen_k, low, high;

  static constexpr int kUnlimited = 1 << 29;
};

// Scores of keys that the row does not see, or that do not exist, become -inf. s: as SoftmaxState; row: this thread's first.
template <int N, bool kHigh, bool kLow, int kRegs>
__device__ __forceinline__ void mask_scores(float (&s)[kRegs], const Band& band, int row, int key0) {
  static_assert(kRegs == N / 2);
  const int column0 = key0 + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int i = 0; i < N / 8; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = s[4 * i + 2 * r + e];
        // The second row is 8 below the first: its comparisons with the diagonal are those of the 8 columns before.
        const int column = column0 + 8 * i + e, diagonal = 8 * (i - r) + e;
        if (kHigh && diagonal >= row + band.high + 1 - column0) x = -INFINITY;
        if (kLow && diagonal < row + band.low - column0) x = -INFINITY;
        if (!kHigh && column >= band.seqlen_k) x = -INFINITY;
      }
}
