// The tile table: every constant that a sweep chose, and the shared memory that follows from it.
#pragma once

#include "pipeline.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

enum class Schedule { kSingle, kStatic, kDynamic };

struct Tuning {
  int consumers;     // warpgroups of 64 query rows
  int tile_n;        // keys a tile
  int stages;        // K and V tiles in flight
  int q_stages;      // Q tiles in flight
  int cluster;       // blocks that share K and V by multicast (full attention, static schedule)
  Schedule schedule;
  bool ping_pong;    // the warpgroups issue products in turn
  // The turn is passed when the products are issued (0), when Q K^T is done (1), when P V is done (2), after the maximum (3), before
  // the wait for P V (4).
  int pass;
  bool lazy;         // rescale only if a maximum grew by more than 2^8
  bool row_order;    // second row's maximum after the first row's (SoftmaxState::find_max)
  // The wait for P V stands after so many eighths of the tile's exp2; 0: where ptxas likes (it hoists the wait as far as its
  // basic block goes; so a wait for the next V tile, which has long come, ends the block).
  int wait_after;
  bool early_rescale;  // O is rescaled under the next Q K^T, not after P V
  int poly;          // of every 8 exp2, so many are polynomials on the FMA units
};

// What a kernel is compiled for; all else is a run-time field.
// kFull, kCausal (bottom right): sequences of one length. kBand: also packed sequences, windows of either alignment, sinks.
// kSegments: also segment ids. kMask: also a mask. kCap: also soft cap. kBias: also a bias that TMA can read. kScores: also soft cap, any bias, mask and
// segment ids.
enum class Kind { kFull, kCausal, kBand, kSegments, kMask, kCap, kBias, kScores };

// Element: __nv_bfloat16, __half, or __nv_fp8_e4m3 (kFull and kCausal; out bf16). D: a multiple of 16, Dv: of 32; tiles are padded to
// column blocks of 128 bytes. The fp8 products want V transposed, [Dv][keys] (transpose.cuh), and a tile of 128 keys, or a multiple.
template <class Element_, int D_, int Dv_, Kind kKind_, Tuning kTuning>
struct Traits {
  using Element = Element_;
  static constexpr int D = D_, Dv = Dv_;
  static constexpr bool kFp8 = sizeof(Element) == 1;
  using Out = std::conditional_t<kFp8, __nv_bfloat16, Element>;
  static constexpr int kColumns = 128 / sizeof(Element), kBlocksQk = (D + kColumns - 1) / kColumns;
  static constexpr Kind kKind = kKind_;
  static constexpr bool kCausal = kKind != Kind::kFull;  // some row may see no key of a tile
  static constexpr bool kBand = kKind >= Kind::kBand, kScores = kKind == Kind::kScores, kBias = kKind == Kind::kBias;
  static constexpr bool kSegments = kKind == Kind::kSegments || kScores, kMask = kKind == Kind::kMask, kRanges = kSegments || kMask;
  static_assert(!kMask || kTuning.tile_n % 64 == 0);
  static constexpr Tuning kTune = kTuning;
  static constexpr int kBlocksV = kFp8 ? kTune.tile_n / 128 : (Dv + 63) / 64, kVBlockBytes = (kFp8 ? Dv : kTune.tile_n) * 128;
  static_assert(!kFp8 || (kTune.tile_n % 128 == 0 && kKind_ <= Kind::kCausal && kTune.cluster == 1));
  // Exponents are raised by so much, so that P fills what e4m3 has (448 = 2^8.8); the sums carry it too.
  static constexpr int kRaise = kFp8 ? 8 : 0;
  static constexpr int kConsumers = kTune.consumers, kTileM = 64 * kConsumers, kTileN = kTune.tile_n;
  static constexpr int kStages = kTune.stages, kQStages = kTune.q_stages, kCluster = kTune.cluster;
  static_assert(kCluster == 1 || (!kCausal && kTune.schedule == Schedule::kStatic && kBlocksQk % kCluster == 0 &&
                                  kBlocksV % kCluster == 0));
  // The output leaves through its own query rows' shared memory, by TMA; else from registers.
  static constexpr bool kStoreByTma = kQStages > 1 && Dv <= D && !kFp8;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 24;
  static constexpr int kConsumerRegisters = kConsumers == 4 ? 112 : kConsumers == 3 ? 160 : 240;
  static constexpr int kQBytes = kTileM * kBlocksQk * 128, kKBytes = kTileN * kBlocksQk * 128, kVBytes = kBlocksV * kVBlockBytes;
  // The bias of a key tile, in column blocks of so many keys, swizzled over so many bytes.
  static constexpr int kBiasColumns = kTileN % 64 ? 32 : 64, kBiasRow = 2 * kBiasColumns, kBiasBytes = kBias ? kTileM * kTileN * 2 : 128;
  static constexpr int kBiasStages = kBias ? 2 : 1;
  static_assert(!kBias || kTileN % 32 == 0);
};

// What the producer tells the consumers about an output tile.
struct Work {
  int m, head, batch;
  int j_begin, j_end;      // key tiles, walked from the last to the first; at least one. No work: j_end = 0
  int seqlen_q, seqlen_k;  // of this sequence
  int row0_q, row0_k;      // of its first query and key in a packed array
  int clean_begin, clean_end;  // kRanges: key tiles that all these queries see: of their document, or without a zero in the mask
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
