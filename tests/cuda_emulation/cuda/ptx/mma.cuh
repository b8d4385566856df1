// In place of src/cuda/ptx/mma.cuh. Lane l brings, in order: of a, rows l / 4 and l / 4 + 8 of the columns 2 (l % 4) and the next (TF32:
// l % 4), the same 8 (4) columns on; of b the same columns of row l / 4. Sums are float32, rounded to the nearest.
#pragma once

namespace attile::cuda::ptx {

// c (16 x 8) += a (16 x kDepth) b (8 x kDepth)^T, elements taken out of words by load(word, which).
template <int kDepth, class Load>
void multiply(emulation::Lanes& lanes, Load load) {
  constexpr int kEach = kDepth / 8;  // elements a word
  float a[16][kDepth], b[kDepth][8];
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 2; ++i)
      for (int e = 0; e < kEach; ++e) {
        const int column = i * kDepth / 2 + l % 4 * kEach + e;
        a[l / 4][column] = load(lanes[l].x[2 * i], e);
        a[l / 4 + 8][column] = load(lanes[l].x[2 * i + 1], e);
        b[column][l / 4] = load(lanes[l].x[4 + i], e);
      }
  float c[16][8] = {};
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < kDepth; ++k)
      for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 4; ++i) lanes[l].x[i] = __float_as_uint(c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2]);
}

inline void add_product(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, void (*product)(emulation::Lanes&)) {
  const emulation::Lane sums = emulation::together({{a[0], a[1], a[2], a[3], b0, b1}}, product);
  for (int i = 0; i < 4; ++i) c[i] += __uint_as_float(sums.x[i]);
}

inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  add_product(c, a, b0, b1, [](emulation::Lanes& lanes) {
    multiply<16>(lanes, [](uint32_t word, int e) { return __uint_as_float(e ? word & 0xffff0000u : word << 16); });
  });
}

inline void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  add_product(c, a, b0, b1, [](emulation::Lanes& lanes) {
    multiply<16>(lanes,
                 [](uint32_t word, int e) { return static_cast<float>(emulation::bits<_Float16>(static_cast<uint16_t>(word >> 16 * e))); });
  });
}

inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  add_product(c, a, b0, b1,
              [](emulation::Lanes& lanes) { multiply<8>(lanes, [](uint32_t word, int) { return __uint_as_float(word & 0xffffe000u); }); });
}

// Ties away from zero.
inline uint32_t round_to_tf32(float x) {
  const uint32_t word = __float_as_uint(x);
  return isfinite(x) ? (word + 0x1000u) & 0xffffe000u : word;
}

}  // namespace attile::cuda::ptx
