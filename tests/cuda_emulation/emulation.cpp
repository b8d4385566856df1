// The GPU: a block's threads are fibers, which run in turn until they wait for others.
//
// A warp runs as far as it can before the next has its turn, and every second block begins with its last warp: a missing barrier
// lets a warp read what another has yet to write, or overwrite what it has yet to read. Shared memory is NaN when a block begins, and copies
// arrive no earlier than their thread waits for them. When nobody can go on, the launch has hung: an error.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "boxes.hpp"
#include "context.hpp"
#include "cuda_runtime_api.h"
#include "products.hpp"

Index3 threadIdx, blockIdx, gridDim;

// The kernels' `extern __shared__` array.
namespace attile::cuda::generic {
extern char shared[];
alignas(1024) char shared[emulation::kSharedBytes];
}  // namespace attile::cuda::generic
namespace attile::cuda::sm90 {
extern char shared[emulation::kSharedBytes] __attribute__((alias("_ZN6attile4cuda7generic6sharedE")));
}
namespace attile::cuda::mla_sm90 {
extern char shared[emulation::kSharedBytes] __attribute__((alias("_ZN6attile4cuda7generic6sharedE")));
}
namespace attile::cuda::decode_sm90 {
extern char shared[emulation::kSharedBytes] __attribute__((alias("_ZN6attile4cuda7generic6sharedE")));
}
namespace attile::cuda::latent {
extern char shared[emulation::kSharedBytes] __attribute__((alias("_ZN6attile4cuda7generic6sharedE")));  // the same
}

namespace emulation {

unsigned shared_limit = kSharedBytes;
unsigned grid_arrivals;

void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s (block %u, thread %u)\n", what, blockIdx.x, threadIdx.x);
  std::abort();
}

namespace {

// ---- fibers ----

constexpr size_t kStackBytes = 256 << 10;

struct Copy {
  uint32_t to;
  const void* from;
  int size, bytes;
};

struct Barrier {
  int count, pending, bytes;
  uint32_t phase;
  std::vector<Box> loads;
};

struct NamedBarrier {
  int arrived;
  unsigned generation;
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  std::vector<Copy> copies;
  std::vector<size_t> groups;  // copies of each group that has not arrived
  std::vector<Box> stores;
  bool done;
};

struct Warp {
  void (*operation)(Lanes&);
  int arrived;
  unsigned generation;
  Lanes lanes[2];  // of this generation, and of the last, which some may have yet to read
};

std::map<uint32_t, Barrier> barriers;
NamedBarrier named[16];

Fiber fibers[kMostThreads];
Warp warps[kMostThreads / kWarp];
Context scheduler;
const std::function<void()>* body;
int threads, arrived;
unsigned shared_bytes, generation, progress;
std::mutex one_at_a_time;

Fiber& own_fiber() { return fibers[threadIdx.x]; }
void wait() { switch_to(own_fiber().context, scheduler); }

void enter() {
  (*body)();
  own_fiber().done = true;
  ++progress;
  wait();
  std::abort();
}

// Runs the lanes of a warp until none can go on; returns how many are not done.
int run_warp(int warp) {
  int left;
  unsigned before;
  do {
    before = progress;
    left = 0;
    for (int t = warp * kWarp; t < (warp + 1) * kWarp; ++t) {
      if (fibers[t].done) continue;
      threadIdx.x = static_cast<unsigned>(t);
      switch_to(scheduler, fibers[t].context);
      left += !fibers[t].done;
    }
  } while (left && progress != before);
  return left;
}

void begin_block() {
  memset(attile::cuda::generic::shared, 0xff, kSharedBytes);
  memset(static_cast<void*>(warps), 0, sizeof warps);
  memset(static_cast<void*>(named), 0, sizeof named);
  barriers.clear();
  for (Products& p : products) p = {};
  arrived = 0;
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
    fiber.done = false;
    fiber.copies.clear();
    fiber.stores.clear();
    fiber.groups.clear();
    prepare(fiber.context, reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(fiber.stack.get() + 63) & ~uintptr_t{63}), kStackBytes - 64,
            enter);
  }
}

// Runs the block until nobody can go on; returns how many threads are not done.
int run_on() {
  const int count = threads / kWarp;
  int left;
  unsigned before;
  do {
    before = progress;
    left = 0;
    for (int w = 0; w < count; ++w) left += run_warp(blockIdx.x % 2 ? count - 1 - w : w);
  } while (left && progress != before);
  return left;
}

void end_block() {
  for (int t = 0; t < threads; ++t) {
    for (const Copy& copy : fibers[t].copies)
      if (copy.bytes > 0) fail("a copy to shared memory that nobody waited for");
    if (!fibers[t].stores.empty()) fail("a store out of shared memory that nobody waited for");
  }
  for (const auto& [address, barrier] : barriers)
    if (!barrier.loads.empty()) fail("a load that nobody waited for");
  for (const Products& p : products)
    if (!p.queue.empty()) fail("a product that nobody waited for");
}

void run_block() {
  begin_block();
  if (run_on()) fail("the threads wait for each other in different places");
  end_block();
}

// A block of a cooperative launch while others run.
struct Resting {
  std::vector<char> shared = std::vector<char>(kSharedBytes);
  std::map<uint32_t, Barrier> barriers;
  NamedBarrier named[16];
  Products products[kMostThreads / kWarp];
  Fiber fibers[kMostThreads];
  Warp warps[kMostThreads / kWarp];
  int arrived = 0;
  unsigned generation = 0;
  bool done = false;

  void change_places() {
    std::swap_ranges(shared.begin(), shared.end(), attile::cuda::generic::shared);
    std::swap(barriers, emulation::barriers);
    std::swap(named, emulation::named);
    std::swap(products, emulation::products);
    std::swap(fibers, emulation::fibers);
    std::swap(warps, emulation::warps);
    std::swap(arrived, emulation::arrived);
    std::swap(generation, emulation::generation);
  }
};

std::vector<std::unique_ptr<Resting>> blocks;  // of the cooperative launch; empty is what the one that runs has here
unsigned cluster_blocks;
constexpr int kRankShift = 24;

}  // namespace

void launch(int64_t blocks, int block_threads, int64_t dynamic_bytes, void*, const std::function<void()>& thread) {
  if (blocks <= 0 || blocks >= int64_t{1} << 31 || block_threads % kWarp || block_threads > kMostThreads || dynamic_bytes > shared_limit)
    fail("a launch that does not fit");
  const std::lock_guard lock(one_at_a_time);
  body = &thread;
  threads = block_threads;
  shared_bytes = static_cast<unsigned>(dynamic_bytes);
  gridDim.x = static_cast<unsigned>(blocks);
  gridDim.y = 1;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) run_block();
}

void launch_together(unsigned x, unsigned y, unsigned cluster, int block_threads, int64_t dynamic_bytes, const std::function<void()>& thread) {
  if (x * y < 1 || y % cluster || block_threads % kWarp || block_threads > kMostThreads || dynamic_bytes > shared_limit) fail("a launch that does not fit");
  const std::lock_guard lock(one_at_a_time);
  body = &thread;
  threads = block_threads;
  shared_bytes = static_cast<unsigned>(dynamic_bytes);
  gridDim = {x, y};
  grid_arrivals = 0;
  cluster_blocks = cluster;
  blocks.clear();
  const auto run = [&](size_t i, auto&& what) {
    blockIdx = {static_cast<unsigned>(i) % x, static_cast<unsigned>(i) / x};
    blocks[i]->change_places();
    what(*blocks[i]);
    blocks[i]->change_places();
  };
  for (size_t i = 0; i < size_t{x} * y; ++i) {
    blocks.push_back(std::make_unique<Resting>());
    run(i, [](Resting&) { begin_block(); });
  }
  size_t left;
  do {
    const unsigned before = progress;
    left = 0;
    for (size_t i = 0; i < blocks.size(); ++i)
      if (!blocks[i]->done)
        run(i, [&](Resting& block) {
          if (run_on()) return static_cast<void>(++left);
          end_block();
          block.done = true;
        });
    if (left && progress == before) fail("the blocks wait for each other");
  } while (left);
  blocks.clear();
  blockIdx = {0, 0};
}

void wait_for_others() { wait(); }
void made_progress() { ++progress; }

Lane together(const Lane& mine, void (*operation)(Lanes&)) {
  Warp& warp = warps[threadIdx.x / kWarp];
  const unsigned own = warp.generation, lane = threadIdx.x % kWarp;
  Lanes& lanes = warp.lanes[own % 2];
  if (warp.arrived == 0) warp.operation = operation;
  if (warp.operation != operation) fail("the lanes of a warp do different things");
  lanes[lane] = mine;
  if (++warp.arrived == kWarp) {
    operation(lanes);
    warp.arrived = 0;
    ++warp.generation;
    ++progress;
  }
  while (warp.generation == own) wait();
  return lanes[lane];
}

uint32_t shared_address(const void* p) { return static_cast<uint32_t>(static_cast<const char*>(p) - attile::cuda::generic::shared); }

uint32_t cluster_address(uint32_t address, uint32_t rank) {
  if (rank >= cluster_blocks) fail("a block that the cluster does not have");
  return address | (rank + 1) << kRankShift;
}

char* shared_at(uint32_t address, uint32_t bytes) {
  if (address % bytes) fail("an access to shared memory that is not aligned");
  if (address > shared_bytes || bytes > shared_bytes - address) fail("an access beyond the launch's shared memory");
  return attile::cuda::generic::shared + address;
}

void copy_later(uint32_t to, const void* from, int size, int bytes) {
  (void)shared_at(to, static_cast<uint32_t>(size));
  if (bytes < 0 || bytes > size) fail("an asynchronous copy of more than its size");
  if (bytes && reinterpret_cast<uintptr_t>(from) % static_cast<uintptr_t>(size)) fail("an asynchronous copy that is not aligned");
  own_fiber().copies.push_back({to, from, size, bytes});
}

namespace {

// The oldest `count` copies of the thread.
void arrive(size_t count) {
  std::vector<Copy>& copies = own_fiber().copies;
  for (size_t i = 0; i < count; ++i) {
    const Copy& copy = copies[i];
    char* to = shared_at(copy.to, static_cast<uint32_t>(copy.size));
    memset(to, 0, static_cast<size_t>(copy.size));
    if (copy.bytes) memcpy(to, copy.from, static_cast<size_t>(copy.bytes));
  }
  copies.erase(copies.begin(), copies.begin() + static_cast<ptrdiff_t>(count));
}

}  // namespace

void wait_for_copies() {
  arrive(own_fiber().copies.size());
  own_fiber().groups.clear();
}

void commit_copies() {
  Fiber& fiber = own_fiber();
  size_t before = 0;
  for (size_t count : fiber.groups) before += count;
  fiber.groups.push_back(fiber.copies.size() - before);
}

void wait_for_groups(int newest) {
  std::vector<size_t>& groups = own_fiber().groups;
  while (groups.size() > static_cast<size_t>(newest)) {
    arrive(groups.front());
    groups.erase(groups.begin());
  }
}

// ---- mbarriers, named barriers ----

namespace {

Barrier& barrier_at(uint32_t address) {
  const auto found = barriers.find(address);
  if (found == barriers.end()) fail("a barrier that was not initialised");
  return found->second;
}

void complete(Barrier& b) {
  if (b.pending < 0) fail("more arrivals than the barrier expects");
  if (b.pending || b.bytes) return;
  ++b.phase;
  b.pending = b.count;
  ++progress;
}

}  // namespace

void store_to_cluster(uint32_t to, uint32_t bar, const void* from, uint32_t bytes) {
  constexpr uint32_t kAddress = (1u << kRankShift) - 1;
  const uint32_t rank = (to >> kRankShift) - 1;
  if (rank >= cluster_blocks || bar >> kRankShift != to >> kRankShift) fail("a store to another block whose barrier is elsewhere");
  const unsigned y = blockIdx.y / cluster_blocks * cluster_blocks + rank;
  Resting& there = *blocks[size_t{y} * gridDim.x + blockIdx.x];
  if (y == blockIdx.y || there.done) fail("a store to a block of the cluster that is not there");
  (void)shared_at(to & kAddress, bytes);
  memcpy(there.shared.data() + (to & kAddress), from, bytes);
  const auto found = there.barriers.find(bar & kAddress);
  if (found == there.barriers.end()) fail("a barrier of another block that was not initialised");
  found->second.bytes -= static_cast<int>(bytes);
  ++progress;
  complete(found->second);
}

void barrier_init(uint32_t bar, int arrivals) {
  (void)shared_at(bar, 8);
  barriers[bar] = {arrivals, arrivals, 0, 0, {}};
}

void barrier_arrive(uint32_t bar, int bytes) {
  Barrier& b = barrier_at(bar);
  b.bytes += bytes;
  --b.pending;
  complete(b);
}

bool barrier_passed(uint32_t bar, uint32_t parity) { return (barrier_at(bar).phase & 1) != parity; }

void barrier_wait(uint32_t bar, uint32_t parity) {
  Barrier& b = barrier_at(bar);
  while ((b.phase & 1) == parity) {
    for (const Box& box : std::exchange(b.loads, {})) {
      for_box(box, [](char* to, const char* from, uint32_t size) { from ? memcpy(to, from, size) : memset(to, 0, size); });
      b.bytes -= static_cast<int>(box.map.box[0] * box.map.box[1] * box.map.box[2] * box.map.size);
      complete(b);
    }
    if ((b.phase & 1) == parity) wait();
  }
}

void named_barrier(int id, int count, bool waits) {
  if (id < 1 || id > 15) fail("a named barrier that does not exist");
  NamedBarrier& b = named[id];
  const unsigned own = b.generation;
  if (++b.arrived == count) {
    b.arrived = 0;
    ++b.generation;
    ++progress;
  }
  while (waits && b.generation == own) wait();
}

// ---- TMA ----

void tensor_load(uint32_t to, const CUtensorMap& map, uint32_t bar, std::array<int, 5> at) { barrier_at(bar).loads.push_back({map, to, at}); }
void tensor_store(uint32_t from, const CUtensorMap& map, std::array<int, 5> at) { own_fiber().stores.push_back({map, from, at}); }
void wait_for_stores() {
  for (const Box& box : own_fiber().stores)
    for_box(box, [](const char* from, char* to, uint32_t size) {
      if (to) memcpy(to, from, size);
    });
  own_fiber().stores.clear();
}

}  // namespace emulation

void __syncthreads() {
  using namespace emulation;
  const unsigned own = generation;
  if (++arrived == threads) {
    arrived = 0;
    ++generation;
    ++progress;
  }
  while (generation == own) wait();
}

int __syncthreads_count(int x) {
  static int count;
  __syncthreads();
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  count += x != 0;
  __syncthreads();
  return count;
}

int __syncthreads_or(int x) {
  static int any;
  __syncthreads();
  if (threadIdx.x == 0) any = 0;
  __syncthreads();
  any |= x != 0;
  __syncthreads();
  return any;
}
