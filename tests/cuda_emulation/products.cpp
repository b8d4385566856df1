// Products of a warpgroup (wgmma), worked out by each of its warps for its 16 rows when it waits for them.
#include "products.hpp"

namespace emulation {

Products products[kMostThreads / kWarp];

float from_e4m3(uint8_t x) {
  const int exponent = x >> 3 & 15, fraction = x & 7;
  const float size = exponent == 15 && fraction == 7 ? NAN : exponent ? ldexpf(1 + fraction / 8.f, exponent - 7) : ldexpf(fraction / 8.f, -6);
  return x & 0x80 ? -size : size;
}

uint8_t to_e4m3(float x) {
  const uint8_t sign = signbit(x) ? 0x80 : 0;
  if (isnan(x)) return sign | 0x7f;
  const float size = min(fabsf(x), 448.f);
  int exponent;
  (void)frexpf(size, &exponent);  // size < 2^exponent
  exponent = max(exponent - 1, -6);
  const int steps = static_cast<int>(nearbyintf(ldexpf(size, 3 - exponent)));  // of 2^(exponent - 3); may be 16
  return static_cast<uint8_t>(sign | (steps < 8 ? steps : ((exponent + 7) << 3) + steps - 8));
}

namespace {

float element(Type type, const char* at) {
  if (type == Type::e4m3) return from_e4m3(static_cast<uint8_t>(*at));
  uint16_t x;
  memcpy(&x, at, 2);
  return type == Type::bf16 ? __uint_as_float(static_cast<uint32_t>(x) << 16) : static_cast<float>(bits<_Float16>(x));
}

int depth_of(Type type) { return type == Type::e4m3 ? 32 : 16; }
uint32_t size_of(Type type) { return type == Type::e4m3 ? 1 : 2; }

// Element (row, k) of an operand that a descriptor tells of.
float operand(Type type, uint64_t descriptor, bool k_major, int row, int k) {
  const auto field = [&](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4; };
  const uint32_t size = size_of(type), r = static_cast<uint32_t>(row), c = static_cast<uint32_t>(k);
  const uint32_t at = k_major ? field(0) + r / 8 * field(32) + r % 8 * 128 + c * size
                              : field(0) + r / 64 * field(16) + c / 8 * field(32) + c % 8 * 128 + r % 64 * size;
  return element(type, shared_at(at ^ (at >> 7 & 7) << 4, size));
}

const Product* coming;

void enqueue(Lanes& lanes) {
  Products& all = products[threadIdx.x / kWarp];
  Queued& q = all.queue.emplace_back();
  q.product = *coming;
  q.batch = all.batch;
  for (int l = 0; l < kWarp; ++l) {
    const uint64_t d = lanes[l].x[4] | static_cast<uint64_t>(lanes[l].x[5]) << 32;
    q.d[l] = reinterpret_cast<float*>(d);
    if (q.product.a_in_shared) continue;
    const int each = 4 / static_cast<int>(size_of(q.product.type));
    for (int j = 0; j < 4; ++j)
      for (int e = 0; e < each; ++e) {
        char word[4];
        memcpy(word, &lanes[l].x[j], 4);
        q.a[j % 2 * 8 + l / 4][j / 2 * 4 * each + l % 4 * each + e] = element(q.product.type, word + e * static_cast<int>(size_of(q.product.type)));
      }
  }
}

void work_out(Queued& q) {
  const Product& p = q.product;
  const int depth = depth_of(p.type), first = static_cast<int>(threadIdx.x / kWarp % 4) * 16;
  if (p.a_in_shared)
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < depth; ++k) q.a[row][k] = operand(p.type, p.a, true, first + row, k);
  static float b[32][256];
  for (int n = 0; n < p.columns; ++n)
    for (int k = 0; k < depth; ++k) b[k][n] = operand(p.type, p.b, !p.transpose_b, n, k);
  for (int row = 0; row < 16; ++row) {
    float sum[256] = {};
    for (int k = 0; k < depth; ++k)
      for (int n = 0; n < p.columns; ++n) sum[n] += q.a[row][k] * b[k][n];
    for (int n = 0; n < p.columns; ++n) {
      float& d = q.d[row % 8 * 4 + n % 8 / 2][n / 8 * 4 + row / 8 * 2 + n % 2];
      d = (p.accumulate ? d : 0) + sum[n];
    }
  }
}

}  // namespace

void product(const Product& p, float* d, const uint32_t* a) {
  Lane lane{};
  if (a) memcpy(lane.x, a, 16);
  const uint64_t address = reinterpret_cast<uint64_t>(d);
  lane.x[4] = static_cast<uint32_t>(address), lane.x[5] = static_cast<uint32_t>(address >> 32);
  coming = &p;
  (void)together(lane, enqueue);
}

void products_commit() {
  (void)together({}, [](Lanes&) { ++products[threadIdx.x / kWarp].batch; });
}

void products_wait(int pending) {
  Lane lane{};
  lane.x[0] = static_cast<uint32_t>(pending);
  (void)together(lane, [](Lanes& lanes) {
    Products& all = products[threadIdx.x / kWarp];
    size_t done = 0;
    while (done < all.queue.size() && all.queue[done].batch < all.batch - static_cast<int>(lanes[0].x[0])) work_out(all.queue[done++]);
    all.queue.erase(all.queue.begin(), all.queue.begin() + static_cast<std::ptrdiff_t>(done));
  });
}

}  // namespace emulation
