// In place of src/cuda/ptx/ldmatrix.cuh, whose words say who receives what.
#pragma once

namespace attile::cuda::ptx {

inline uint32_t shared_address(const void* p) { return emulation::shared_address(p); }

inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
  const emulation::Lane mine = emulation::together({{address}}, [](emulation::Lanes& lanes) {
    const char* rows[32];
    for (int l = 0; l < 32; ++l) rows[l] = emulation::shared_at(lanes[l].x[0], 16);
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 4; ++i) memcpy(&lanes[l].x[i], rows[8 * i + l / 4] + l % 4 * 4, 4);
  });
  memcpy(r, mine.x, sizeof r);
}

inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address) {
  const emulation::Lane mine = emulation::together({{address}}, [](emulation::Lanes& lanes) {
    const char* rows[32];
    for (int l = 0; l < 32; ++l) rows[l] = emulation::shared_at(lanes[l].x[0], 16);
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 4; ++i) {
        uint16_t pair[2];
        for (int e = 0; e < 2; ++e) memcpy(&pair[e], rows[8 * i + l % 4 * 2 + e] + l / 4 * 2, 2);
        memcpy(&lanes[l].x[i], pair, 4);
      }
  });
  memcpy(r, mine.x, sizeof r);
}

inline void stmatrix_x4(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  emulation::together({{address, a, b, c, d}}, [](emulation::Lanes& lanes) {
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 4; ++i) {
        const emulation::Lane& from = lanes[8 * i + l / 4];
        memcpy(emulation::shared_at(from.x[0], 16) + l % 4 * 4, &lanes[l].x[1 + i], 4);
      }
  });
}

inline uint32_t load_shared(uint32_t address) {
  uint32_t x;
  memcpy(&x, emulation::shared_at(address, 4), 4);
  return x;
}

inline uint4 load_shared_16(uint32_t address) {
  uint4 x;
  memcpy(&x, emulation::shared_at(address, 16), 16);
  return x;
}

inline void store_shared(uint32_t address, uint32_t x) { memcpy(emulation::shared_at(address, 4), &x, 4); }
inline void store_shared(uint32_t address, uint4 x) { memcpy(emulation::shared_at(address, 16), &x, 16); }

}  // namespace attile::cuda::ptx
