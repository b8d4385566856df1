// What a unit on tiles knows of its rows, and their softmax state: base, sum and O of every panel, how a group is added to them, and how
// a base is raised.
#pragma once

#include "cpu/amx/softmax.hpp"
#include "cpu/amx/visit.hpp"
#include "cpu/forward/scores.hpp"
#include "cpu/forward/softmax.hpp"
#include "cpu/forward/state.hpp"

namespace attile::ATTILE_ISA {

static_assert(kPanel<float> == kTileLanes);

inline constexpr int64_t kOutSlots = 2;

template <int kParts>
class TileState {
 public:
  // factor: takes scores to base 2. apart: every panel has an O of its own, not one of kOutSlots.
  TileState(const Unit& unit, float factor, bool apart)
      : u(unit), panels((u.count + kTileLanes - 1) / kTileLanes), columns(round_up(u.head_dim_v, kChunk)), factor(factor), apart_(apart) {
    for (int64_t l = 0, first = (panels - 1) * kTileLanes; l < kTileLanes; ++l)
      last_rows_[l] = u.rows[first + l < u.count ? first + l : u.count - 1];
    for (int64_t panel = 0; panel < panels; ++panel) begin(panel);
  }

  const Unit& u;
  const int64_t panels, columns;  // of rows; of head_dim_v as padded
  const float factor;

  const QueryRow* rows(int64_t panel) const { return panel + 1 < panels ? u.rows + panel * kTileLanes : last_rows_; }
  float* out(int64_t panel) const { return static_cast<float*>(u.state.out) + (apart_ ? panel : panel % kOutSlots) * columns * kTileLanes; }

  // The state as one of a whole block, of which this panel is right.
  BlockState block(int64_t panel) const { return {u.state.max, u.state.sum, out(panel) - panel * columns * kTileLanes}; }

  void clear_out(int64_t panel) const {
    float* o = out(panel);
    for (int64_t i = 0; i < columns * kTileLanes; i += kLanes<float>) store(o + i, Vec<float>{});
  }

  // 0 a lane, or NaN where a sum or an element of O is infinite or NaN.
  __attribute__((noinline)) Vec<float> doubt(int64_t panel) const {
    const float *sum = sum_of(panel), *o = out(panel);
    Vec<float> product[4] = {load<Vec<float>>(sum) * 0.f, load<Vec<float>>(sum + 16) * 0.f};
    for (int64_t i = 0; i < columns * kTileLanes; i += 4 * 16) {
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) product[n] = fma(load<Vec<float>>(o + i + n * 16), Vec<float>{}, product[n]);
    }
    return (product[0] + product[1]) + (product[2] + product[3]);
  }

  // Without normalisation out is relative to the exact maximum.
  void settle(int64_t panel) const {
    Vec<float> alpha[2];
    for (int n = 0; n < 2; ++n) {
      const Vec<float> base = load<Vec<float>>(max_of(panel) + n * 16), top = load<Vec<float>>(top_of(panel) + n * 16);
      Vec<float> sink;
      for (int l = 0; l < 16; ++l) sink[l] = static_cast<float>(rows(panel)[n * 16 + l].sink_max);
      const Vec<float> c = broadcast<float>(factor);
      const Vec<float> below = fma(top, c, Vec<float>{} - base), sink_below = sink - base;
      const Vec<float> difference = below > sink_below ? below : sink_below, largest = below > sink_below ? top * c : sink;
      const auto exact = (base != ceil(base)) | outgrown(base) | (base == -kInfinity<float>);
      const Vec<float> sum = load<Vec<float>>(sum_of(panel) + n * 16);
      alpha[n] = (exact ? broadcast<float>(1) : exp2<float>(Vec<float>{} - difference)) + (sum - sum);  // a NaN is only in the sum
      store(max_of(panel) + n * 16, exact ? base : largest);
      store(sum_of(panel) + n * 16, sum * alpha[n]);
    }
    scale_lanes(out(panel), columns, alpha);
  }

  // Rows that have seen nothing take their base from this group. False: this group has to be done carefully.
  template <int kDegree>
  inline __attribute__((always_inline)) bool begin_group(int64_t panel, const Group& group, const float* s, char* p,
                                                         GroupSoftmax<kParts, kDegree>& softmax) const {
    Vec<float> base[2];
    if (!load_base(panel, base) || u.dropout) return false;
    if (lanes_of((base[0] == -kInfinity<float>) | (base[1] == -kInfinity<float>))) {
      Vec<float> top[2], none[2] = {base[0], base[1]};
      group_top(s, group.steps * kTileStep, top);
      if (!raised(none, top, factor, base)) return false;
      for (int n = 0; n < 2; ++n) {
        base[n] = none[n] == -kInfinity<float> ? base[n] : none[n];
        store(max_of(panel) + n * 16, base[n]);
      }
    }
    softmax.begin(s, p, group.steps * kTileStep, base, factor);
    return true;
  }

  template <int kDegree>
  inline __attribute__((always_inline)) void end_group(const Visit& visit, const Group& group, float* s, char* p,
                                                       GroupSoftmax<kParts, kDegree>& softmax) const {
    if (__builtin_expect(softmax.outgrown(), 0)) {
      careful_group(visit, group, s, p, softmax, factor);
    } else {
      add(visit.panel, softmax.sum, softmax.top);
    }
  }

  // The maximum first, then p in place, for what has to see or change p itself. c takes these scores to base 2.
  template <int kDegree>
  __attribute__((noinline)) void careful_group(const Visit& visit, const Group& group, float* s, char* p,
                                               const GroupSoftmax<kParts, kDegree>&, float c) const {
    const int64_t padded = group.steps * kTileStep;
    Vec<float> base[2], top[2], sum[2] = {};
    group_top(s, padded, top);
    if (load_base(visit.panel, base) && raise(visit, group, p, top, c, base)) {
      GroupSoftmax<kParts, kDegree> softmax;
      softmax.begin(s, p, padded, base, c);
      softmax.in_place(s, padded);
      sum[0] = softmax.sum[0];
      sum[1] = softmax.sum[1];
    } else {
      Vec<float> alpha[2];
      softmax_of_any_size(visit, padded, c, s, alpha);
      rescale(visit, group, p, alpha);
    }
    for (int n = 0; n < 2; ++n) top[n] *= c / factor;
    add(visit.panel, sum, top);
    if (u.dropout) apply_dropout<float, 2>(u, rows(visit.panel), group.key, group.keys, s);
    for (int64_t pair = 0; pair < padded / 2; ++pair) {
      char* to = p + pair / kStepPairs * kParts * kStepBytes + pair % kStepPairs * kTileRowBytes;
      for (int n = 0; n < 2; ++n) {
        const float* from = s + 2 * pair * kTileLanes + n * 16;
        store_pair<kParts>(load<Vec<float>>(from), load<Vec<float>>(from + kTileLanes), to + n * kTileBytes);
      }
    }
  }

 private:
  const bool apart_;
  QueryRow last_rows_[kTileLanes];  // of the last panel, filled up with copies of the last row

  float* max_of(int64_t panel) const { return static_cast<float*>(u.state.max) + panel * kTileLanes; }
  float* sum_of(int64_t panel) const { return static_cast<float*>(u.state.sum) + panel * kTileLanes; }
  float* top_of(int64_t panel) const { return static_cast<float*>(u.scratch.tops) + panel * kTileLanes; }

  static auto outgrown(Vec<float> base) { return ((base > kLargestBase) | (base < -kLargestBase)) & (base > -kInfinity<float>); }

  void begin(int64_t panel) const {
    const QueryRow* from = rows(panel);
    for (int l = 0; l < kTileLanes; ++l) {
      const double base = __builtin_ceil(from[l].sink_max);
      max_of(panel)[l] = static_cast<float>(base);
      sum_of(panel)[l] = static_cast<float>(from[l].sink_sum == 0 ? 0 : from[l].sink_sum * __builtin_exp2(from[l].sink_max - base));
      top_of(panel)[l] = -kInfinity<float>;
    }
  }

  bool load_base(int64_t panel, Vec<float> (&base)[2]) const {
    uint32_t exact = 0;
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      base[n] = load<Vec<float>>(max_of(panel) + n * 16);
      exact |= lanes_of(outgrown(base[n]) | ((base[n] != ceil(base[n])) & (base[n] == base[n])));
    }
    return exact == 0 && factor > 0x1p-100f && factor < 0x1p100f;
  }

  // The next integer above the maximum where that is above the base. False: such a base would lose digits.
  bool raised(const Vec<float> (&base)[2], const Vec<float> (&top)[2], float c, Vec<float> (&now)[2]) const {
    uint32_t exact = 0;
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      const Vec<float> scaled = top[n] * c;
      now[n] = scaled > base[n] ? ceil(scaled) : base[n];
      exact |= lanes_of(outgrown(now[n]) | ((scaled == -kInfinity<float>)&(top[n] > -kInfinity<float>)));
    }
    return exact == 0;
  }

  // Everything that is relative to the old base, P of this visit's earlier groups included.
  void rescale(const Visit& visit, const Group& group, char* p, const Vec<float> (&alpha)[2]) const {
    if (!lanes_of((alpha[0] != 1.f) | (alpha[1] != 1.f))) return;
    const int64_t steps = (group.first - visit.first) / kTileStep;
    scale_probabilities<kParts>(p - steps * kParts * kStepBytes, steps, alpha);
    if (!visit.begins) scale_lanes(out(visit.panel), columns, alpha);
  }

  // Raises the base of rows whose maximum has outgrown it.
  bool raise(const Visit& visit, const Group& group, char* p, const Vec<float> (&top)[2], float c, Vec<float> (&base)[2]) const {
    Vec<float> now[2], alpha[2];
    if (!raised(base, top, c, now)) return false;
    for (int n = 0; n < 2; ++n) {
      alpha[n] = now[n] == base[n] ? broadcast<float>(1) : exp2<float>(base[n] - now[n]);
      base[n] = now[n];
      float* sum = sum_of(visit.panel) + n * 16;
      store(sum, load<Vec<float>>(sum) * alpha[n]);
      store(max_of(visit.panel) + n * 16, now[n]);
    }
    rescale(visit, group, p, alpha);
    return true;
  }

  void add(int64_t panel, const Vec<float> (&sum)[2], const Vec<float> (&top)[2]) const {
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      float *sums = sum_of(panel) + n * 16, *tops = top_of(panel) + n * 16;
      store(sums, load<Vec<float>>(sums) + sum[n]);
      store(tops, max(top[n], load<Vec<float>>(tops)));
    }
  }

  void softmax_of_any_size(const Visit& visit, int64_t keys, float c, float* s, Vec<float> (&alpha)[2]) const {
    softmax<float, 2>(s, keys, c, max_of(visit.panel), sum_of(visit.panel), alpha);
  }
};

}  // namespace attile::ATTILE_ISA
