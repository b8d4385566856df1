// The warp that loads: keys and values of tile after tile into the ring, a box of TMA for what lies together in memory. A lane knows where
// one box lies: 32 boxes are looked up at once, and the next 32 while these are loaded. Boxes of fewer than kLeastBox keys are copied by the
// lanes, 16 bytes each: TMA takes as long for a small box as for one of 8 keys.
#pragma once

#include "cuda/decode/sm90/plan.cuh"
#include "cuda/mla_decode/sm90/ptx.cuh"

namespace attile::cuda::decode_sm90 {

constexpr uint64_t kEvictNormal = 0x1000000000000000ull;

struct Place {
  int page, row;
};

// Of the box of keys from `key` on. What no query sees, or a page that does not exist, is read as zeros: page `pages` is none.
__device__ __forceinline__ Place place_of(const Params& p, int b, const Keys& keys, int key) {
  if (key >= keys.end || key + p.box_keys <= keys.begin) return {p.pages, 0};
  if (!p.f.pages.data) return {b, key};
  const int entry = key / p.f.page_size;
  const generic::Indices row{p.f.pages.data + b * p.f.pages_batch, p.f.pages.stride, p.f.pages.wide};
  const int64_t page = generic::read_index(row, entry);
  return {page < 0 || page >= p.pages ? p.pages : static_cast<int>(page), key - entry * p.f.page_size};
}

// One tile of keys or of values.
template <class T>
struct TileLoad {
  using At = Cursor<T::kSlots, T::kWarps>;
  const Params& p;
  SharedStorage<T>& sm;
  const CUtensorMap& map;
  const generic::Tensor& rows;

  __device__ __forceinline__ void begin(const At& to) const {
    to.wait_free();
    if (p.by_lanes()) return;
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive_expect(to.full(), T::kSlotBytes);
    __syncwarp();
  }
  // `count` boxes from `box` of the tile on; place: of lane i's box.
  __device__ __forceinline__ void load(const At& to, int box, int count, Place place, int head) const {
    const int lane = threadIdx.x % 32;
    const uint32_t slot = ptx::shared_address(sm.ring[to.slot]);
    if (!p.by_lanes()) {
      if (lane >= count) return;
      const uint64_t hint = p.evict_first ? ptx::kEvictFirst : kEvictNormal;
#pragma unroll
      for (int c = 0; c < T::kDim / 64; ++c)
        ptx::tma_load_4d(slot + c * T::kBoxBytes + (box + lane) * p.box_keys * 128, &map, to.full(), hint, c * 64, place.row, head, place.page);
      return;
    }
    constexpr int kPieces = T::kDim / 8, kRows = 32 / kPieces;  // 16 bytes each; rows at once
    constexpr int64_t kNowhere = INT64_MIN;
    const int piece = lane % kPieces, shift = __ffs(p.box_keys) - 1;
    const uint32_t column = slot + piece / 8 * T::kBoxBytes;
    const int64_t own = place.page < p.pages ? place.page * rows.batch + place.row * rows.row + head * rows.head : kNowhere;
#pragma unroll 4
    for (int i = lane / kPieces; i < count << shift; i += kRows) {
      const int row = (box << shift) + i;
      const int64_t first = __shfl_sync(~0u, own, i >> shift), at = first + (i & (p.box_keys - 1)) * rows.row;
      const bool exists = first != kNowhere;
      mla_sm90::cp_async_16_once(column + row * 128 + ((piece ^ row) % 8 << 4), rows.data + (exists ? at : 0) + piece * 16, exists ? 16 : 0);
    }
  }
  __device__ __forceinline__ void end(const At& to) const {
    if (p.by_lanes()) mla_sm90::cp_async_arrive(to.full());
  }
};

template <class T>
__device__ __forceinline__ void produce(const Params& p, const Maps& maps, SharedStorage<T>& sm) {
  const int lane = threadIdx.x % 32, boxes = T::kN / p.box_keys, together = min(boxes, 32);
  const TileLoad<T> keys{p, sm, maps.k, p.f.k}, values{p, sm, maps.v, p.f.v};
  Cursor keys_at(sm.barriers), values_at(sm.barriers);
  values_at.next();
  for (Walk<T::kN> w(p.f, sm.part); w.more(); w.next()) {
    const auto look_up = [&](int box) { return place_of(p, w.b, w.keys, (box + lane) * p.box_keys); };
    int known = w.first_tile() * boxes / 32 * 32;  // boxes known .. known + 31
    Place own = look_up(known), ahead = look_up(known + 32);
#pragma unroll 1
    for (int tile = w.first_tile(), end = tile + w.tiles; tile < end; ++tile) {
#pragma unroll 1
      for (int box = 0; box < boxes; box += 32) {
        const int number = tile * boxes + box;
        if (number >= known + 32) {
          known += 32;
          own = ahead;
          ahead = look_up(known + 32);
        }
        const int from = (number + lane) % 32;
        const Place place{__shfl_sync(~0u, own.page, from), __shfl_sync(~0u, own.row, from)};
        if (box == 0) keys.begin(keys_at);
        keys.load(keys_at, box, together, place, w.h);
        if (box == 0) values.begin(values_at);
        values.load(values_at, box, together, place, w.h);
      }
      keys.end(keys_at), values.end(values_at);
      keys_at.next(), keys_at.next(), values_at.next(), values_at.next();
    }
  }
  __syncwarp();
}

}  // namespace attile::cuda::decode_sm90
