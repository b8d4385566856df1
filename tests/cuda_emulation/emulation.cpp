// The GPU: a block's threads are fibers, which run in turn until they wait for others.
//
// A warp runs as far as it can before the next has its turn, and every second block begins with its last warp: a missing barrier
// lets a warp read what another has yet to write, or overwrite what it has yet to read. Shared memory is NaN when a block begins, and copies
// arrive no earlier than their thread waits for them. When nobody can go on, the launch has hung: an error.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif

#include "cuda_runtime_api.h"

Index3 threadIdx, blockIdx, gridDim;

// The kernels' `extern __shared__` array.
namespace attile::cuda::generic {
extern char shared[];
alignas(128) char shared[emulation::kSharedBytes];
}  // namespace attile::cuda::generic

namespace emulation {

void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s (block %u, thread %u)\n", what, blockIdx.x, threadIdx.x);
  std::abort();
}

namespace {

// ---- fibers ----

#ifdef __x86_64__

// Saves on its stack what a call preserves.
using Context = void*;
extern "C" void attile_switch(Context* from, Context to);
asm(R"(
.text
.type attile_switch, @function
attile_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
.size attile_switch, . - attile_switch
)");

void switch_to(Context& from, Context& to) { attile_switch(&from, to); }

void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + bytes - 64);
  *--top = nullptr;  // where a call would return to: entry finds the alignment it expects
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context = top;
}

#else

using Context = ucontext_t;

void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }

void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  makecontext(&context, entry, 0);
}

#endif

constexpr size_t kStackBytes = 256 << 10;
constexpr int kMostThreads = 256;

struct Copy {
  uint32_t to;
  const void* from;
  int size, bytes;
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  std::vector<Copy> copies;
  std::vector<size_t> groups;  // copies of each group that has not arrived
  bool done;
};

struct Warp {
  void (*operation)(Lanes&);
  int arrived;
  unsigned generation;
  Lanes lanes[2];  // of this generation, and of the last, which some may have yet to read
};

Fiber fibers[kMostThreads];
Warp warps[kMostThreads / kWarp];
Context scheduler;
const std::function<void()>* body;
int threads, arrived;
unsigned shared_bytes, generation, progress;

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

void run_block() {
  memset(attile::cuda::generic::shared, 0xff, kSharedBytes);
  memset(static_cast<void*>(warps), 0, sizeof warps);
  arrived = 0;
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
    fiber.done = false;
    fiber.copies.clear();
    fiber.groups.clear();
    prepare(fiber.context, reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(fiber.stack.get() + 63) & ~uintptr_t{63}), kStackBytes - 64,
            enter);
  }
  const int count = threads / kWarp;
  int left;
  do {
    const unsigned before = progress;
    left = 0;
    for (int w = 0; w < count; ++w) left += run_warp(blockIdx.x % 2 ? count - 1 - w : w);
    if (left && progress == before) fail("the threads wait for each other in different places");
  } while (left);
  for (int t = 0; t < threads; ++t)
    for (const Copy& copy : fibers[t].copies)
      if (copy.bytes > 0) fail("a copy to shared memory that nobody waited for");
}

}  // namespace

void launch(int64_t blocks, int block_threads, int64_t dynamic_bytes, void*, const std::function<void()>& thread) {
  if (blocks <= 0 || blocks >= int64_t{1} << 31 || block_threads % kWarp || block_threads > kMostThreads || dynamic_bytes > kSharedBytes)
    fail("a launch that does not fit");
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  body = &thread;
  threads = block_threads;
  shared_bytes = static_cast<unsigned>(dynamic_bytes);
  gridDim.x = static_cast<unsigned>(blocks);
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) run_block();
}

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

int __syncthreads_or(int x) {
  static int any;
  __syncthreads();
  if (threadIdx.x == 0) any = 0;
  __syncthreads();
  any |= x != 0;
  __syncthreads();
  return any;
}

// ---- the runtime ----

cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus*) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the emulation"; }
const char* cudaGetErrorName(cudaError_t) { return "cudaErrorEmulated"; }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"emulated", size_t{1} << 34};
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  constexpr int kMajor = 8, kMinor = 0, kMultiprocessors = 108, kL2Bytes = 40 << 20;
  constexpr int kValues[] = {kMajor, kMinor, kMultiprocessors, emulation::kSharedBytes, kL2Bytes};
  *value = kValues[which];
  return cudaSuccess;
}
