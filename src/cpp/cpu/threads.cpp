// The pool is a list of open jobs under one mutex, and a counter of offers that idle workers watch: first spinning for a bounded
// time, then asleep. Nothing here needs the workers to come; they make a job faster, never complete.
//
// Fork: the child has no workers and possibly a locked mutex. So its handler forgets the pool (a new one is made when needed) and
// everything outside the pool is lock-free. Exit: workers leave their job after the item at hand and are joined; the pool's memory
// stays, as other threads may still be inside parallel_for and finish by themselves.
#include "cpu/threads.hpp"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <limits>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/available_cpus.hpp"

namespace attile {
namespace {

constexpr size_t kCacheLine = 64;
// Longer than a Python program needs from one call to the next where the caches have forgotten the interpreter, some 30 us; no longer, for
// until then helpers stand in the way of the threads of other libraries (docs/cpu-mla.md).
constexpr auto kSpin = std::chrono::microseconds(50);

thread_local bool inside_job = false;

std::atomic<int> chosen_threads{0};     // 0: not determined yet
std::atomic<bool> spinning_pays{true};  // not with more threads than CPUs: a spinning thread would stand in a working one's way
std::atomic<bool> exiting{false};

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns when word != old: at once, after spinning, or after sleeping.
void wait_for_change(const std::atomic<uint32_t>& word, uint32_t old) {
  if (spinning_pays.load(std::memory_order_relaxed)) {
    const auto start = std::chrono::steady_clock::now();
    do {
      for (int i = 0; i < 16; ++i) {
        if (word.load(std::memory_order_acquire) != old) return;
        pause();
      }
    } while (std::chrono::steady_clock::now() - start < kSpin);
  }
  word.wait(old, std::memory_order_acquire);
}

// ---- a job -----------------------------------------------------------------------------------------------------------------

// Counted references: the caller holds one, and each helper that may still come. On the heap, as helpers may come after the
// caller has returned.
class Job {
 public:
  Job(int64_t items, int workers, FunctionRef<void(int64_t, int)> body) : items_(items), body_(body), references_(workers) {}

  // A helper's part, at any time.
  void help() {
    uint32_t state = state_.load(std::memory_order_relaxed);
    do {
      if (state & kClosed) return;
    } while (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire, std::memory_order_relaxed));
    drain(next_worker_.fetch_add(1, std::memory_order_relaxed));
    if (state_.fetch_sub(1, std::memory_order_release) == (kClosed | 1)) state_.notify_one();
  }

  // The caller's part. Afterwards all items are done and no helper touches the body any more.
  void work_and_close() {
    drain(0);
    uint32_t state = state_.fetch_or(kClosed, std::memory_order_acq_rel) | kClosed;
    while (state != kClosed) {
      wait_for_change(state_, state);
      state = state_.load(std::memory_order_acquire);
    }
  }

  void rethrow_error() {
    if (error_) std::rethrow_exception(std::move(error_));
  }

  void release(int references = 1) {
    if (references_.fetch_sub(references, std::memory_order_acq_rel) == references) delete this;
  }

 private:
  static constexpr uint32_t kClosed = uint32_t{1} << 31;  // the other bits count the helpers inside

  void drain(int worker) {
    const bool outer = std::exchange(inside_job, true);
    const bool helper = worker != 0;
    try {
      for (int64_t item; (item = next_item_.fetch_add(1, std::memory_order_relaxed)) < items_;) {
        body_(item, worker);
        if (helper && exiting.load(std::memory_order_relaxed)) break;
      }
    } catch (...) {
      next_item_.store(items_, std::memory_order_relaxed);
      if (!failed_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
    }
    inside_job = outer;
  }

  const int64_t items_;
  const FunctionRef<void(int64_t, int)> body_;
  alignas(kCacheLine) std::atomic<int64_t> next_item_{0};
  alignas(kCacheLine) std::atomic<uint32_t> state_{0};
  std::atomic<int> next_worker_{1};
  std::atomic<int> references_;
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

// ---- the pool --------------------------------------------------------------------------------------------------------------

class Pool {
 public:
  // Opens a job to `seats` helpers. The pool takes over that many references.
  void offer(Job* job, int seats) {
    size_t threads;
    try {
      std::lock_guard lock(mutex_);
      grow(seats);
      offers_.push_back({job, seats});
      open_seats_.fetch_add(seats, std::memory_order_relaxed);
      threads = threads_.size();
    } catch (const std::bad_alloc&) {
      job->release(seats);
      return;
    }
    // After the unlock: a spinning worker would otherwise run into the mutex and sleep.
    offers_made_.fetch_add(1, std::memory_order_release);
    if (static_cast<size_t>(seats) >= threads) {
      offers_made_.notify_all();
    } else {
      for (int i = 0; i < seats; ++i) offers_made_.notify_one();
    }
  }

  // Closes it to helpers that have not come.
  void withdraw(Job* job) {
    if (open_seats_.load(std::memory_order_relaxed) == 0) return;
    int seats = 0;
    {
      std::lock_guard lock(mutex_);
      const auto offer = std::find_if(offers_.begin(), offers_.end(), [&](const Offer& o) { return o.job == job; });
      if (offer == offers_.end()) return;
      seats = offer->seats;
      offers_.erase(offer);
      open_seats_.fetch_sub(seats, std::memory_order_relaxed);
    }
    job->release(seats);
  }

  void join() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    offers_made_.fetch_add(1, std::memory_order_release);
    offers_made_.notify_all();
    for (std::thread& thread : threads_) {
      // exit() called inside a body: a thread cannot join itself.
      if (thread.get_id() == std::this_thread::get_id()) {
        thread.detach();
      } else {
        thread.join();
      }
    }
  }

 private:
  struct Offer {
    Job* job;
    int seats;
  };

  // Under the mutex. When the system gives no more threads, those that are there do the work.
  void grow(int wanted) {
    if (stopping_ || threads_.size() >= static_cast<size_t>(wanted)) return;
    // Signals are the host program's; only those that a thread brings on itself stay.
    sigset_t all, old;
    sigfillset(&all);
    for (int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGPROF}) sigdelset(&all, own);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    try {
      while (threads_.size() < static_cast<size_t>(wanted)) threads_.emplace_back(&Pool::work, this);
    } catch (const std::system_error&) {
    } catch (const std::bad_alloc&) {
    }
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
  }

  Job* take() {
    if (open_seats_.load(std::memory_order_relaxed) == 0) return nullptr;
    std::lock_guard lock(mutex_);
    if (offers_.empty()) return nullptr;
    Job* job = offers_.front().job;
    if (--offers_.front().seats == 0) offers_.erase(offers_.begin());
    open_seats_.fetch_sub(1, std::memory_order_relaxed);
    return job;
  }

  void work() {
    for (;;) {
      const uint32_t seen = offers_made_.load(std::memory_order_acquire);
      while (Job* job = take()) {
        job->help();
        job->release();
      }
      if (exiting.load(std::memory_order_acquire)) return;
      wait_for_change(offers_made_, seen);
    }
  }

  std::mutex mutex_;
  std::vector<std::thread> threads_;
  std::vector<Offer> offers_;
  bool stopping_ = false;
  alignas(kCacheLine) std::atomic<uint32_t> offers_made_{0};
  std::atomic<int> open_seats_{0};  // the sum over offers_
};

std::atomic<Pool*> current_pool{nullptr};

// Null when there is none and the process exits.
Pool* pool() {
  Pool* found = current_pool.load(std::memory_order_acquire);
  if (found != nullptr || exiting.load(std::memory_order_acquire)) return found;
  auto made = std::make_unique<Pool>();  // has no threads yet, so the loser of a race just frees it
  if (current_pool.compare_exchange_strong(found, made.get(), std::memory_order_acq_rel)) return made.release();
  return found;
}

void forget_pool_after_fork() { current_pool.store(nullptr, std::memory_order_relaxed); }

// At load time, not at first use: a guard that another thread holds while it forks would stay locked in the child.
const int fork_handler_status = pthread_atfork(nullptr, nullptr, forget_pool_after_fork);

struct JoinAtExit {
  ~JoinAtExit() {
    exiting.store(true, std::memory_order_release);
    if (Pool* found = current_pool.load(std::memory_order_acquire)) found->join();
  }
} join_at_exit;

// ---- how many threads ------------------------------------------------------------------------------------------------------

// The number that `text` begins with, if it is one and, unless `list`, nothing follows it. 0: it is not.
int parse_threads(const char* text, bool list) {
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text, &end, 10);
  while (*end == ' ') ++end;
  const bool complete = *end == '\0' || (list && *end == ',');
  return errno == 0 && end != text && complete && value > 0 && value <= std::numeric_limits<int>::max() ? static_cast<int>(value) : 0;
}

int default_threads() {
  if (const char* text = std::getenv("ATTILE_NUM_THREADS"); text != nullptr && *text != '\0') {
    if (const int n = parse_threads(text, false)) return n;
    std::fprintf(stderr, "attile: ATTILE_NUM_THREADS must be a positive integer: got '%s'; it is ignored\n", text);
  }
  // Not ours, so not ours to complain about.
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    if (const int n = parse_threads(text, true)) return n;
  }
  return available_cpus();
}

}  // namespace

int num_threads() noexcept {
  int n = chosen_threads.load(std::memory_order_relaxed);
  if (n != 0) return n;
  const int found = default_threads();
  if (!chosen_threads.compare_exchange_strong(n, found, std::memory_order_relaxed)) return n;
  spinning_pays.store(found <= available_cpus(), std::memory_order_relaxed);
  return found;
}

void set_num_threads(int n) noexcept {
  chosen_threads.store(n, std::memory_order_relaxed);
  if (n > 0) spinning_pays.store(n <= available_cpus(), std::memory_order_relaxed);
}

void parallel_for(const attile_executor* executor, int64_t items, int max_workers, FunctionRef<void(int64_t item, int worker)> body) {
  const int threads = inside_job ? 1 : executor != nullptr ? executor->num_threads(executor->context) : num_threads();
  const int workers = static_cast<int>(std::min<int64_t>({items, max_workers, threads}));
  Pool* own = workers > 1 && executor == nullptr ? pool() : nullptr;
  if (workers <= 1 || (own == nullptr && executor == nullptr)) {
    for (int64_t item = 0; item < items; ++item) body(item, 0);
    return;
  }

  Job* job = new Job(items, workers, body);
  if (own != nullptr) {
    own->offer(job, workers - 1);
  } else {
    const auto task = [](void* data) {
      static_cast<Job*>(data)->help();
      static_cast<Job*>(data)->release();
    };
    for (int i = 1; i < workers; ++i) executor->schedule(executor->context, task, job);
  }
  job->work_and_close();
  if (own != nullptr) own->withdraw(job);
  struct Release {
    Job* job;
    ~Release() { job->release(); }
  } release{job};
  job->rethrow_error();
}

}  // namespace attile
