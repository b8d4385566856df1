// What a kernel is compiled for: the tile table, every constant of which a sweep chose (docs/hopper-forward.md), and the shared memory that
// follows from it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/forward/sm90/pipeline.cuh"
#include "cuda/forward/sm90/work.hpp"
#include "cuda/tile/element.cuh"

namespace attile::cuda::sm90 {

// Queries, keys and values of one byte; the output is bfloat16.
struct E4m3 {
  static constexpr int kBytes = 1;
};

struct Tuning {
  int consumers;       // warpgroups of 64 query rows
  int tile_n;          // keys a tile
  int stages;          // K and V tiles in flight
  int q_stages;        // Q tiles in flight
  bool late_turn;      // the other warpgroup's turn begins after this one's maximum, not when its products are issued
  bool row_order;      // second row's maximum after the first row's (SoftmaxState::find_max)
  int wait_after;      // the wait for P V stands after so many eighths of the exp2; 0: where ptxas likes
  bool early_rescale;  // O is rescaled under the next Q K^T, not after P V
};

// Rows of few keys are bound by memory and by what happens once a tile; on long causal ones the waste on the diagonal is small.
enum class Length { kShort, kMiddle, kLong };
inline constexpr int kShortTo = 1536, kLongFrom = 6144;

constexpr Tuning plain_tuning(int bytes, int d, bool causal, Length length) {
  const bool is_short = length == Length::kShort;
  //                                              wg n   st q  late   row    wait early
  if (bytes == 1 && d == 64 && is_short) return {2, 256, 2, 2, false, true, 4, false};
  if (bytes == 1 && d == 64) return {3, 128, 3, 2, false, false, 0, false};
  if (bytes == 1) return {2, 128, d > 128 ? 2 : 3, 2, false, true, 4, false};
  if (d == 64 && is_short && causal) return {2, 128, 3, 2, false, false, 0, false};
  if (d == 64) return {3, 128, 3, 2, false, false, 0, false};
  if (d == 192) return {2, 128, 2, 1, false, true, 0, false};
  if (d == 256 && !causal && length == Length::kLong) return {2, 80, 2, 1, true, true, 3, true};
  if (d == 256) return {2, 80, 2, 1, false, false, 4, true};
  if (causal && length == Length::kLong) return {2, 160, 2, 2, false, true, 3, false};
  if (causal) return {2, 128, 2, 2, false, true, 4, false};
  if (is_short) return {2, 128, 2, 2, true, true, 3, false};
  return {2, 160, 2, 2, true, true, 3, false};
}

constexpr Tuning tuning(int bytes, int d, Kind kind, Length length) {
  Tuning t = plain_tuning(bytes, d, kind != Kind::kFull, length);
  if (kind == Kind::kMask && t.tile_n % 64) t.tile_n = 64;
  if (kind == Kind::kCap && t.consumers == 3) t.consumers = 2;  // three have 160 registers each: 64 bytes too few
  if (kind == Kind::kScores) {  // the bias of the coming key tile sits in registers too
    t.consumers = 2, t.wait_after = 4;
    t.tile_n = bytes == 1 || d == 64 ? 128 : d >= 192 ? 64 : 96;
  }
  if (kind == Kind::kBias) {  // the bias takes a third warpgroup's shared memory
    t.consumers = t.stages = 2;
    if (d == 96 || d == 128) t.tile_n = 128, t.q_stages = 1;
    if (d == 192) t.tile_n = 96;
    if (d == 256) t.tile_n = 64;
  }
  return t;
}

// D: a multiple of 16, Dv: of 32; tiles are padded to column blocks of 128 bytes. Fewer head dims are zeros that the copies fill in. The
// products of E4m3 want V transposed, [Dv][keys] (transpose.cuh), and tiles of whole 128 keys.
template <class Element_, int D_, int Dv_, Kind kKind_, Length kLength_>
struct Traits {
  using Element = Element_;
  static constexpr int D = D_, Dv = Dv_;
  static constexpr Kind kKind = kKind_;
  static constexpr Tuning kTune = tuning(Element::kBytes, D, kKind, kLength_);
  static constexpr bool kFp8 = Element::kBytes == 1;
  using Out = std::conditional_t<kFp8, Bf16, Element>;
  static constexpr int kColumns = 128 / Element::kBytes, kBlocksQk = (D + kColumns - 1) / kColumns;
  static constexpr bool kCausal = kKind != Kind::kFull;  // some row may see no key of a tile
  static constexpr bool kBand = kKind >= Kind::kBand, kScores = kKind == Kind::kScores, kBias = kKind == Kind::kBias;
  static constexpr bool kSegments = kKind == Kind::kSegments || kScores, kMask = kKind == Kind::kMask || kScores;
  static constexpr bool kRanges = kSegments || kMask;
  static constexpr bool kPacks = kBand && !kBias;  // takes rows of several heads
  static constexpr int kConsumers = kTune.consumers, kTileM = 64 * kConsumers, kTileN = kTune.tile_n;
  static constexpr int kStages = kTune.stages, kQStages = kTune.q_stages;
  static constexpr int kBlocksV = kFp8 ? kTileN / 128 : (Dv + 63) / 64, kVBlockBytes = (kFp8 ? Dv : kTileN) * 128;
  static_assert(!kMask || kTileN % 32 == 0);
  static_assert(!kFp8 || (kTileN % 128 == 0 && (kKind <= Kind::kBand || (kScores && D <= 128))));
  // Exponents are raised by so much, so that P fills what e4m3 has (448 = 2^8.8); the sums carry it too.
  static constexpr int kRaise = kFp8 ? 8 : 0;
  // Full attention has tiles of one length: a fixed stride. The others draw the next tile, the longest first.
  static constexpr bool kDynamic = kCausal;
  // The output leaves through its own query rows' shared memory; else from registers.
  static constexpr bool kStoreByQ = kQStages > 1 && Dv <= D && !kFp8;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 24;
  static constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : 240;
  static constexpr int kQBytes = kTileM * kBlocksQk * 128, kKBytes = kTileN * kBlocksQk * 128, kVBytes = kBlocksV * kVBlockBytes;
  // The bias of a key tile, in column blocks of so many keys, swizzled over so many bytes.
  static constexpr int kBiasColumns = kTileN % 64 ? 32 : 64, kBiasRow = 2 * kBiasColumns, kBiasBytes = kBias ? kTileM * kTileN * 2 : 128;
  static constexpr int kBiasStages = kBias ? 2 : 1;
  static_assert(!kBias || kTileN % 32 == 0);
};

template <class T>
struct alignas(1024) SharedStorage {
  uint8_t q[T::kQStages][T::kQBytes];
  uint8_t k[T::kStages][T::kKBytes];
  uint8_t v[T::kStages][T::kVBytes];
  alignas(1024) uint8_t bias[T::kBiasStages][T::kBiasBytes];
  alignas(16) Work work[2];
  RingBarriers<T::kQStages> q_bars;
  RingBarriers<T::kStages> k_bars, v_bars;
  RingBarriers<2> work_bars;
  RingBarriers<T::kBiasStages> bias_bars;
};

}  // namespace attile::cuda::sm90
