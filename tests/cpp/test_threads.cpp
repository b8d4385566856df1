// The thread pool: every item once, workers that do not share an index, executors that come late or never, exceptions, nesting,
// many callers, resizing while others work, forks. The sanitizer builds run all of it.
#include "cpu/threads.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <numeric>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.hpp"

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

using attile::parallel_for;

namespace {

// Plain ints: a lost or doubled item shows in the sum, a race in ThreadSanitizer.
std::vector<int> counts_of_a_job(const attile_executor* executor, int64_t items, int max_workers) {
  std::vector<int> counts(items, 0);
  parallel_for(executor, items, max_workers, [&](int64_t item, int) { ++counts[item]; });
  return counts;
}

bool all_one(const std::vector<int>& counts) {
  return std::all_of(counts.begin(), counts.end(), [](int n) { return n == 1; });
}

void spin(std::chrono::microseconds time) {
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - start < time) {
  }
}

struct WithThreads {
  explicit WithThreads(int n) { attile::set_num_threads(n); }
  ~WithThreads() { attile::set_num_threads(0); }
};

// A host program's executor. Tasks wait in a queue until somebody calls run(), or a thread of its own takes them.
class Host {
 public:
  explicit Host(int threads, int own_threads) : threads_(threads) {
    for (int i = 0; i < own_threads; ++i) workers_.emplace_back([this] { serve(); });
  }
  ~Host() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    run();
  }
  attile_executor executor() {
    return {sizeof(attile_executor), this, [](void* self) { return static_cast<int32_t>(static_cast<Host*>(self)->threads_); },
            [](void* self, void (*task)(void*), void* data) { static_cast<Host*>(self)->schedule(task, data); }};
  }
  // Runs what waits; returns how many tasks that were.
  int run() {
    int ran = 0;
    for (std::unique_lock lock(mutex_); !tasks_.empty(); ++ran) {
      const auto [task, data] = tasks_.front();
      tasks_.pop_front();
      lock.unlock();
      task(data);
      lock.lock();
    }
    return ran;
  }

 private:
  void schedule(void (*task)(void*), void* data) {
    {
      std::lock_guard lock(mutex_);
      tasks_.push_back({task, data});
    }
    changed_.notify_one();
  }
  void serve() {
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stopping_ || !tasks_.empty(); });
        if (stopping_) return;
      }
      run();
    }
  }

  const int threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<void (*)(void*), void*>> tasks_;
  bool stopping_ = false;
  std::vector<std::thread> workers_;
};

// Runs `body` in a forked child and returns its exit status, or -1 when it hangs or dies.
template <class Body>
int status_of_forked(Body body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  for (int i = 0; i < 1000; ++i) {
    int status = 0;
    if (waitpid(child, &status, WNOHANG) == child) return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  return -1;
}

}  // namespace

TEST(every_item_runs_once) {
  for (int threads : {1, 2, 3, 8}) {
    WithThreads with(threads);
    for (int64_t items : {0, 1, 2, 3, 7, 64, 1000}) {
      for (int max_workers : {1, 2, 5, 100}) CHECK(all_one(counts_of_a_job(nullptr, items, max_workers)));
    }
  }
}

TEST(items_begin_in_order) {
  WithThreads with(4);
  std::atomic<int64_t> begun{0};
  std::vector<int64_t> position(500);
  parallel_for(nullptr, 500, 4, [&](int64_t item, int) { position[item] = begun++; });
  // Of the items before it, only those in the hands of the three other workers may not have begun.
  for (int64_t item = 0; item < 500; ++item) CHECK(position[item] >= item - 3);
}

TEST(workers_have_indices_of_their_own) {
  WithThreads with(8);
  for (int max_workers : {2, 3, 8}) {
    std::vector<std::atomic<int>> inside(max_workers);
    for (int repeat = 0; repeat < 50; ++repeat) {
      parallel_for(nullptr, 40, max_workers, [&](int64_t, int worker) {
        CHECK(worker >= 0 && worker < max_workers);
        CHECK_EQ(inside[worker].fetch_add(1), 0);
        spin(std::chrono::microseconds(5));
        inside[worker].fetch_sub(1);
      });
    }
  }
}

TEST(several_threads_take_part) {
  WithThreads with(3);
  std::mutex mutex;
  std::set<std::thread::id> threads;
  // Each of the three items waits for the others, so the job only ends if three threads work on it at the same time.
  std::atomic<int> arrived{0};
  parallel_for(nullptr, 3, 3, [&](int64_t, int) {
    ++arrived;
    while (arrived < 3) std::this_thread::yield();
    std::lock_guard lock(mutex);
    threads.insert(std::this_thread::get_id());
  });
  CHECK_EQ(threads.size(), size_t{3});
}

TEST(one_thread_or_one_item_stays_in_the_caller) {
  const auto caller = std::this_thread::get_id();
  std::vector<int64_t> order;
  const auto body = [&](int64_t item, int worker) {
    CHECK(std::this_thread::get_id() == caller);
    CHECK_EQ(worker, 0);
    order.push_back(item);
  };
  {
    WithThreads with(4);
    parallel_for(nullptr, 1, 4, body);
    parallel_for(nullptr, 3, 1, body);
  }
  WithThreads with(1);
  parallel_for(nullptr, 3, 4, body);
  CHECK(order == std::vector<int64_t>({0, 0, 1, 2, 0, 1, 2}));
}

TEST(nested_jobs_are_serial) {
  WithThreads with(4);
  std::vector<int> counts(8 * 16, 0);
  parallel_for(nullptr, 8, 4, [&](int64_t outer, int) {
    const auto thread = std::this_thread::get_id();
    int64_t next = 0;
    parallel_for(nullptr, 16, 4, [&](int64_t inner, int worker) {
      CHECK(std::this_thread::get_id() == thread);
      CHECK_EQ(worker, 0);
      CHECK_EQ(inner, next++);
      ++counts[outer * 16 + inner];
    });
  });
  CHECK(all_one(counts));
}

TEST(the_first_exception_arrives_and_the_pool_lives_on) {
  WithThreads with(4);
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::atomic<int> ran{0};
    bool thrown = false;
    try {
      parallel_for(nullptr, 100000, 4, [&](int64_t item, int) {
        ++ran;
        if (item == 10) throw std::runtime_error("item 10");
      });
    } catch (const std::runtime_error& error) {
      thrown = std::string(error.what()) == "item 10";
    }
    CHECK(thrown);
    CHECK(ran >= 11 && ran <= 100000);
    CHECK(all_one(counts_of_a_job(nullptr, 100, 4)));
  }
}

TEST(num_threads_is_what_was_set) {
  attile::set_num_threads(3);
  CHECK_EQ(attile::num_threads(), 3);
  attile::set_num_threads(0);
  CHECK(attile::num_threads() >= 1);
}

TEST(an_executor_that_never_runs_a_task_delays_nobody) {
  Host host(8, 0);
  const attile_executor executor = host.executor();
  CHECK(all_one(counts_of_a_job(&executor, 100, 4)));
  // Three helpers were asked for; they come when the job, its items and its body are long gone.
  CHECK_EQ(host.run(), 3);
}

TEST(an_executor_may_run_a_task_at_once) {
  struct Inline {
    static void schedule(void*, void (*task)(void*), void* data) { task(data); }
    static int32_t num_threads(void*) { return 4; }
  };
  const attile_executor executor{sizeof(attile_executor), nullptr, Inline::num_threads, Inline::schedule};
  CHECK(all_one(counts_of_a_job(&executor, 100, 4)));
}

TEST(an_executor_with_threads_of_its_own) {
  Host host(4, 3);
  const attile_executor executor = host.executor();
  for (int repeat = 0; repeat < 300; ++repeat) CHECK(all_one(counts_of_a_job(&executor, repeat % 17, 4)));
}

TEST(an_executor_whose_threads_all_call) {
  // Four jobs on four threads that are the executor's only ones: nobody is left to help, nobody may wait for help.
  Host host(4, 4);
  const attile_executor executor = host.executor();
  struct Call {
    const attile_executor* executor;
    std::atomic<int> done{0};
  } call{&executor};
  for (int i = 0; i < 4; ++i) {
    executor.schedule(
        executor.context,
        [](void* data) {
          auto* call = static_cast<Call*>(data);
          CHECK(all_one(counts_of_a_job(call->executor, 50, 4)));
          ++call->done;
        },
        &call);
  }
  while (call.done < 4) std::this_thread::yield();
}

TEST(many_callers_at_the_same_time) {
  WithThreads with(4);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([caller] {
      for (int repeat = 0; repeat < 300; ++repeat) CHECK(all_one(counts_of_a_job(nullptr, 1 + (repeat * 7 + caller) % 40, 4)));
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(the_number_of_threads_changes_while_others_work) {
  std::atomic<bool> stop{false};
  std::thread worker([&] {
    while (!stop) CHECK(all_one(counts_of_a_job(nullptr, 25, 16)));
  });
  for (int repeat = 0; repeat < 400; ++repeat) {
    attile::set_num_threads(repeat % 7);
    CHECK(attile::num_threads() >= 1);
    CHECK(all_one(counts_of_a_job(nullptr, 10, 16)));
  }
  stop = true;
  worker.join();
  attile::set_num_threads(0);
}

TEST(results_of_the_workers_are_seen_by_the_caller) {
  WithThreads with(4);
  for (int repeat = 0; repeat < 500; ++repeat) {
    std::vector<int64_t> partial(4 * 16, 0);  // a cache line each, written without atomics
    parallel_for(nullptr, 200, 4, [&](int64_t item, int worker) { partial[worker * 16] += item; });
    CHECK_EQ(std::accumulate(partial.begin(), partial.end(), int64_t{0}), int64_t{199 * 100});
  }
}

TEST(sleeping_workers_come_back) {
  WithThreads with(3);
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    CHECK(all_one(counts_of_a_job(nullptr, 30, 3)));
  }
}

TEST(a_forked_child_computes) {
  if (kThreadSanitizer) return;  // it does not let a child of a threaded process start threads
  WithThreads with(4);
  CHECK(all_one(counts_of_a_job(nullptr, 100, 4)));
  CHECK_EQ(status_of_forked([] { return all_one(counts_of_a_job(nullptr, 100, 4)) ? 7 : 8; }), 7);
  CHECK(all_one(counts_of_a_job(nullptr, 100, 4)));
}

TEST(a_child_forked_while_another_thread_computes) {
  if (kThreadSanitizer) return;
  WithThreads with(4);
  std::atomic<bool> stop{false};
  std::thread worker([&] {
    while (!stop) counts_of_a_job(nullptr, 20, 4);
  });
  for (int repeat = 0; repeat < 30; ++repeat) {
    CHECK_EQ(status_of_forked([] { return all_one(counts_of_a_job(nullptr, 100, 4)) ? 7 : 8; }), 7);
  }
  stop = true;
  worker.join();
}

TEST(a_child_that_exits_the_ordinary_way) {
  if (kThreadSanitizer) return;
  WithThreads with(4);
  CHECK(all_one(counts_of_a_job(nullptr, 100, 4)));
  const int status = status_of_forked([]() -> int {
    if (!all_one(counts_of_a_job(nullptr, 100, 4))) return 8;
    std::exit(7);  // joins the child's own workers
  });
  CHECK_EQ(status, 7);
}

TEST(exit_while_a_job_runs) {
  if (kThreadSanitizer) return;
  const int status = status_of_forked([]() -> int {
    attile::set_num_threads(4);
    std::atomic<int> begun{0};
    std::thread([&] { parallel_for(nullptr, int64_t{1} << 40, 4, [&](int64_t, int) { ++begun; }); }).detach();
    while (begun < 1000) std::this_thread::yield();
    std::exit(7);
  });
  CHECK_EQ(status, 7);
}

TEST_MAIN()
