// The tiles of the generic mla_decode kernels: eight warps, rows of queries in steps of 16, few keys, since rows of keys are long.
#pragma once

#include "cuda/mla_decode/generic/decode_params.hpp"

namespace attile::cuda::latent {

inline constexpr int kMostLatent = 512;

template <class Element_, int kM_>
struct DecodeTraits {
  using Element = Element_;
  static constexpr int kWarps = 8, kThreads = 32 * kWarps;
  static constexpr int kM = kM_, kTileM = 16 * kM, kTileN = Element::kBytes == 2 ? 32 : 16;
  // Q K^T: a warp has 16 rows, 16 keys and a slice of the dims.
  static constexpr int kSlices = kWarps / (kM * (kTileN / 16));
  static_assert(kSlices * kM * (kTileN / 16) == kWarps);
  // Softmax: so many lanes a row. Loading: so many threads a row of keys.
  static constexpr int kRowLanes = kThreads / kTileM, kRowKeys = kTileN / kRowLanes, kLoadLanes = kThreads / kTileN;
  static_assert(kRowLanes <= 32 && kRowKeys >= 1);
  // P V: columns 16 (warp + 8 g).
  static constexpr int kGroups = kMostLatent / (16 * kWarps);
  static constexpr int kScoreStride = kTileN + 8;                           // floats
  static constexpr int kWeightStride = (kTileN + 8) * Element::kBytes;      // bytes: 8 rows of ldmatrix in different banks
  static constexpr int kBlocks = kM == 4 ? 1 : 2;                           // a multiprocessor

  static constexpr Layout layout(int latent, int rope, bool head_rope, int stages) {
    Layout l{};
    const auto padded = [](int elements) { return (elements * Element::kBytes + 127) / 128 * 128; };
    l.latent_bytes = padded(latent);
    l.rope_bytes = head_rope ? 0 : padded(rope);
    l.q_stride = l.latent_bytes + padded(rope) + 16;
    l.k_stride = l.latent_bytes + l.rope_bytes + 16;
    l.tile = kTileN * l.k_stride;
    l.scores = kTileM * l.q_stride;
    l.weights = l.scores + kSlices * kTileM * kScoreStride * 4;
    l.rows = l.weights + kTileM * kWeightStride;
    l.places = l.rows + kTileM * 8;
    l.ring = l.places + stages * kTileN * 8;
    l.stages = stages;
    l.bytes = l.ring + stages * l.tile;
    return l;
  }
};

}  // namespace attile::cuda::latent
