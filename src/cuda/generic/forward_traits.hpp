// The tile table of the generic forward kernels.
//
//   plain     band (causal, windows), lengths, grouped heads, lse
//   biased    plain with a bias of the inputs' type, whose rows can be read 16 bytes at a time, and one query head for each key head
//   general   every option besides, as run-time fields
//   streamed  general, for head dims above 256: Q and K pass through shared memory in parts of 64 dims, a block has 256 (float32:
//             128) columns of V and the parts compute the same scores
//
// A block needs no more than 99 KB of shared memory, which every GPU since sm_80 has.
#pragma once

namespace attile::cuda::generic {

enum class Variant { plain, biased, general, streamed };

// kM: 16-row fragments of a warp. kDim, kDimV: padded head dims, streamed: those of a part. kBlocks: on a multiprocessor.
// kBuffers: of K and V; with two of each a tile has one barrier, not two.
template <class Element_, Variant kVariant_, int kWarps_, int kM_, int kTileN_, int kDim_, int kDimV_, int kBlocks_, int kBuffers_ = 1>
struct ForwardTraits {
  using Element = Element_;
  static constexpr Variant kVariant = kVariant_;
  static constexpr bool kBiased = kVariant == Variant::biased, kGeneral = kVariant >= Variant::general,
                        kStreamed = kVariant == Variant::streamed;
  static constexpr int kWarps = kWarps_, kThreads = 32 * kWarps, kM = kM_, kTileM = 16 * kM * kWarps, kTileN = kTileN_;
  static constexpr int kDim = kDim_, kDimV = kDimV_, kBlocks = kBlocks_;
  static constexpr bool kDouble = kBuffers_ == 2;

  static constexpr int kPadding = 16;
  static constexpr int kRowBytes = kDim * Element::kBytes + kPadding, kRowBytesV = kDimV * Element::kBytes + kPadding;
  static_assert(!(kStreamed && kDouble));
  static constexpr int kStagesQ = kStreamed ? 2 : 1, kStagesK = kStreamed || kDouble ? 2 : 1, kStagesV = kDouble ? 2 : 1;
  static constexpr int kQBytes = kTileM * kRowBytes, kKBytes = kTileN * kRowBytes, kVBytes = kTileN * kRowBytesV;
  static constexpr int kOperandBytes = kStagesQ * kQBytes + kStagesK * kKBytes + kStagesV * kVBytes, kMostBytes = 99 << 10;
  // general: a bias of 16 bits passes through shared memory where there is room for it.
  static constexpr int kStagesBias = kDouble ? 2 : 1, kBiasRowBytes = kTileN * 2 + kPadding, kBiasBytes = kTileM * kBiasRowBytes;
  static constexpr bool kStagedBias = kGeneral && kOperandBytes + kStagesBias * kBiasBytes <= kMostBytes;
  static constexpr int kSharedBytes = kOperandBytes + (kStagedBias ? kStagesBias * kBiasBytes : 0);
  static_assert(kSharedBytes <= kMostBytes);
};

// warps, kM, keys, dims, columns of V, blocks, buffers
template <class Element>
using Plain64 = ForwardTraits<Element, Variant::plain, 4, 1, 64, 64, 64, 4, 2>;
template <class Element>
using Plain96 = ForwardTraits<Element, Variant::plain, 4, 2, 64, 96, 96, 2>;
template <class Element>
using Plain128 = ForwardTraits<Element, Variant::plain, 4, 2, 64, 128, 128, 2>;
template <class Element>
using Plain192 = ForwardTraits<Element, Variant::plain, 4, 1, 64, 192, 192, 2>;
template <class Element>
using Plain256 = ForwardTraits<Element, Variant::plain, 4, 1, 48, 256, 256, 2>;
template <class Element>
using Biased64 = ForwardTraits<Element, Variant::biased, 4, 2, 64, 64, 64, 2, 2>;
template <class Element>
using Biased128 = ForwardTraits<Element, Variant::biased, 4, 1, 64, 128, 128, 2>;
template <class Element>
using General64 = ForwardTraits<Element, Variant::general, 4, 1, 64, 64, 64, 3, 2>;
template <class Element>
using General128 = ForwardTraits<Element, Variant::general, 4, 1, 64, 128, 128, 2>;
template <class Element>
using General256 = ForwardTraits<Element, Variant::general, 4, 1, 48, 256, 256, 2>;
template <class Element>
using Streamed = ForwardTraits<Element, Variant::streamed, 4, 1, 32, 64, 256, 2>;

template <class Element>
using Wide64 = ForwardTraits<Element, Variant::plain, 4, 2, 32, 64, 64, 2>;
template <class Element>
using Wide128 = ForwardTraits<Element, Variant::plain, 4, 1, 32, 128, 128, 2>;
template <class Element>
using Wide256 = ForwardTraits<Element, Variant::plain, 4, 1, 16, 256, 256, 2>;
template <class Element>
using WideGeneral64 = ForwardTraits<Element, Variant::general, 4, 1, 64, 64, 64, 2>;
template <class Element>
using WideGeneral128 = ForwardTraits<Element, Variant::general, 4, 1, 32, 128, 128, 2>;
template <class Element>
using WideGeneral256 = ForwardTraits<Element, Variant::general, 4, 1, 16, 256, 256, 2>;
template <class Element>
using WideStreamed = ForwardTraits<Element, Variant::streamed, 4, 1, 32, 64, 128, 2>;

}  // namespace attile::cuda::generic
