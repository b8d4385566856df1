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
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int column0 = key0 + 2 * (threadIdx.x % 4);
    int end = band.seqlen_k;
    if (kHigh) end = min(end, row + 8 * r + band.high + 1);
    end -= column0;
    const int begin = row + 8 * r + band.low - column0;
#pragma unroll
    for (int i = 0; i < N / 8; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (8 * i + e >= end || (kLow && 8 * i + e < begin)) s[4 * i + 2 * r + e] = -INFINITY;
  }
}
