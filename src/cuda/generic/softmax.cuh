// Online softmax of a tile of scores, in base 2:
//
//   max' = max(max, c s_j);  alpha = 2^(max - max');  p_j = 2^(c s_j - max');  sum' = alpha sum + sum_j p_j
//
// c takes scores to base 2: log2(e), times softmax_scale where scores are as Q K^T left them. The maximum moves only when it would grow by
// more than `lazy`: one that is a little old costs nothing, and rows are rarely rescaled; 0 where out is not normalized and shows it. Whether
// any of a warp's would is known from the lanes' own scores: most tiles need no maximum of a row.
//
// Where nothing has been seen the maximum is -inf and 0 is subtracted instead. The comparisons drop NaN from the maximum; it comes
// back through p and so reaches sum and out of that row alone.
#pragma once

#include <climits>
#include <cmath>
#include <type_traits>

#include "core/philox.hpp"
#include "cuda/generic/scores.cuh"
#include "cuda/ptx/math.cuh"

namespace attile::cuda::generic {

inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

template <int kM>
struct SoftmaxState {
  float max[kM][2];
  int moves[kM][2];  // a score whose bits, as an integer, are no less may move the maximum; the least integer where every score may
  float sum[kM][2];  // of this lane's keys; the four lanes of a row are joined at the end

  __device__ __forceinline__ SoftmaxState() {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) max[m][r] = -INFINITY, moves[m][r] = INT_MIN, sum[m][r] = 0.f;
  }
};

// kNaN: NaN is the largest of all, else the smallest.
template <bool kNaN>
__device__ __forceinline__ float larger(float x, float y) {
  return kNaN ? ptx::max_nan(x, y) : fmaxf(x, y);
}

template <bool kNaN>
__device__ __forceinline__ float max_of_row(float x) {
  x = larger<kNaN>(x, __shfl_xor_sync(~0u, x, 1));
  return larger<kNaN>(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float sum_of_row(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

template <int kM, int kColumns>
__device__ __forceinline__ void scale_rows(float (&o)[kM][kColumns][4], const float (&alpha)[kM][2]) {
  bool moved = false;
#pragma unroll
  for (int m = 0; m < kM; ++m) moved = moved || !(alpha[m][0] == 1.f && alpha[m][1] == 1.f);
  if (!__any_sync(~0u, moved)) return;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) o[m][n][i] *= alpha[m][i / 2];
}

template <bool kNaN, int kM, int kN>
__device__ __forceinline__ float max_of_lane(const float (&s)[kM][kN][4], int m, int r) {
  float x = s[m][0][2 * r], y = s[m][0][2 * r + 1];
#pragma unroll
  for (int n = 1; n < kN; ++n) x = larger<kNaN>(x, s[m][n][2 * r]), y = larger<kNaN>(y, s[m][n][2 * r + 1]);
  return larger<kNaN>(x, y);
}

// Part `part` of `parts` of the exponentials of keys 16 step to 16 step + 15: s <- p = exp2(c s - offset), and sum += p.
template <int kM, int kN>
__device__ __forceinline__ void exponentiate(float (&s)[kM][kN][4], float (&sum)[kM][2], float c, const float (&offset)[kM][2], int step,
                                             int part, int parts) {
  constexpr int kCount = kM * 8;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < part * kCount / parts || i >= (part + 1) * kCount / parts) continue;
    const int m = i / 8, n = 2 * step + i / 4 % 2, r = i / 2 % 2, e = i % 2;
    float& x = s[m][n][2 * r + e];
    x = ptx::exp2_approx(fmaf(x, c, -offset[m][r]));
    sum[m][r] += x;
  }
}

// Whether no score of the warp's tile moves a maximum: then nothing needs to be known of the tile's own maxima. As integers floats of which one
// is at least 0 compare as they are, and three at a time; NaN, which arithmetic makes without a sign, is the largest.
template <int kM, int kN>
__device__ __forceinline__ bool keeps_maximum(const float (&s)[kM][kN][4], const SoftmaxState<kM>& state) {
  bool moves = false;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int top = INT_MIN;
#pragma unroll
      for (int n = 0; n < kN; ++n) top = max(top, max(__float_as_int(s[m][n][2 * r]), __float_as_int(s[m][n][2 * r + 1])));
      moves = moves || top >= state.moves[m][r];
    }
  return !__any_sync(~0u, moves);
}

// What there is to do when the maximum of a row is no number: nothing.
struct Leave {
  __device__ __forceinline__ void operator()() const {}
};

// The maxima of a tile join the state's, c > 0: p is exp2(c s - offset), and what was summed before must be multiplied by alpha. mend: may change
// scores that are not numbers, which the warp then tells by maxima that are not.
template <int kM, int kN, class Mend = Leave>
__device__ __forceinline__ void move_maximum(float (&s)[kM][kN][4], SoftmaxState<kM>& state, float c, float lazy, float (&alpha)[kM][2],
                                             float (&offset)[kM][2], Mend mend = {}) {
  constexpr float kSteep = 65536.f, kLargest = 3.4028234663852886e38f;
  constexpr bool kMends = !std::is_same_v<Mend, Leave>;
  float top[kM][2];
  bool steep = false;
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[m][r] = max_of_row<kMends>(max_of_lane<kMends>(s, m, r));
      offset[m][r] = top[m][r] * c;
      steep = steep || (fabsf(offset[m][r]) > kSteep && top[m][r] != -INFINITY) || (kMends && top[m][r] != top[m][r]);
    }
  // Maxima so large that their rounding in base 2 would show: scores are taken relative to them first, exactly.
  float origin[kM][2] = {};
  if (__any_sync(~0u, steep)) {
    if constexpr (kMends) {
      mend();
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          top[m][r] = max_of_row<false>(max_of_lane<false>(s, m, r));
          offset[m][r] = top[m][r] * c;
        }
    }
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (!(top[m][r] > -INFINITY && fabsf(offset[m][r]) > kSteep)) continue;
#pragma unroll
        for (int n = 0; n < kN; ++n) s[m][n][2 * r] -= top[m][r], s[m][n][2 * r + 1] -= top[m][r];
        if (top[m][r] != INFINITY) offset[m][r] = fminf(fmaxf(offset[m][r], -kLargest), kLargest);
        origin[m][r] = offset[m][r];
      }
  }
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float before = state.max[m][r], now = offset[m][r] - before > lazy ? offset[m][r] : before;
      offset[m][r] = now == -INFINITY ? 0.f : now;
      alpha[m][r] = ptx::exp2_approx(before - offset[m][r]);
      state.max[m][r] = now;
      state.sum[m][r] *= alpha[m][r];
      offset[m][r] -= origin[m][r];
      const float limit = (now + lazy) / c;
      state.moves[m][r] = limit >= 0.f && fabsf(now) <= kSteep && lazy > 0.f ? __float_as_int(fminf(limit, kLargest)) + 1 : INT_MIN;
    }
}

// p becomes 0 where dropped; NaN stays. A call of Philox serves rows i and i + 8 and keys j and j + 1, which is what a lane holds
// when a row is a position; in a group of heads it serves one row.
template <int kM, int kN>
__device__ __forceinline__ void apply_dropout(const ForwardParams& p, const Work& w, const LaneRows<kM>& rows, int k0,
                                              float (&s)[kM][kN / 8][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kN / 8; ++n) {
      const int j = k0 + 8 * n + lane_column();
      const auto bits = [&](int r) {
        return philox4x32_10(Dropout::counter(p.dropout_sequence + w.sequence, p.dropout_head + rows.head[m][r], rows.position[m][r], j),
                             p.dropout_seed);
      };
      PhiloxBlock words = bits(0);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (r == 1 && p.group != 1) words = bits(1);
        const bool upper = rows.position[m][r] >> 3 & 1;
#pragma unroll
        for (int e = 0; e < 2; ++e) s[m][n][2 * r + e] *= (upper ? words[2 + e] : words[e]) >= p.dropout_threshold ? 1.f : 0.f;
      }
    }
}

// As it was given.
__device__ __forceinline__ float read_natural_sink(const ForwardParams& p, int head, int n) {
  const char* at = p.sinks + head * p.sink_head + n * p.sink_next;
  switch (p.sink_dtype) {
    case DType::bf16:
      return __uint_as_float(static_cast<uint32_t>(load_unaligned<uint16_t>(at)) << 16);
    case DType::f16:
      return __half2float(__ushort_as_half(load_unaligned<uint16_t>(at)));
    case DType::f32:
      return __uint_as_float(load_unaligned<uint32_t>(at));
    default:
      return __double2float_rn(__longlong_as_double(static_cast<long long>(load_unaligned<uint64_t>(at))));
  }
}

// In base 2.
__device__ __forceinline__ float read_sink(const ForwardParams& p, int head, int n) { return kLog2E * read_natural_sink(p, head, n); }

// The sinks of a head join a row. Returns what out must be multiplied by.
__device__ __forceinline__ float join_sinks(const ForwardParams& p, int head, float& max, float& sum) {
  float top = max;
  for (int n = 0; n < p.sink_count; ++n) top = fmaxf(top, read_sink(p, head, n));
  const float base = top == -INFINITY ? 0.f : top, own = ptx::exp2_approx(max - base);
  sum *= own;
  for (int n = 0; n < p.sink_count; ++n) sum += ptx::exp2_approx(read_sink(p, head, n) - base);
  max = top;
  return own;
}

// What out of a row must be multiplied by at the end; 0 for a row that saw nothing.
__device__ __forceinline__ float final_factor(const ForwardParams& p, float sum) {
  if (sum == 0.f) return 0.f;
  return p.unnormalized ? p.dropout_scale : p.dropout_scale / sum;
}

// Natural.
__device__ __forceinline__ float final_lse(float max, float sum) {
  if (sum == 0.f) return -INFINITY;
  return (max == -INFINITY ? 0.f : max * kLn2) + logf(sum);
}

}  // namespace attile::cuda::generic
