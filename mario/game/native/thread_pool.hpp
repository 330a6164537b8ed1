// A few threads that share numbered items of work; the calling thread works, too.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace nes {

class ThreadPool {
 public:
  // `threads` in all, the caller included; at least 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // A process that was forked has none of the threads: work then runs on the caller alone.
  bool forked() const;
  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(item, thread) for each item below `items`, in any order, on any thread; returns when
  // all are done. `work` must not throw. One call at a time.
  void run(int items, const std::function<void(int item, int thread)>& work);

 private:
  void worker(int thread);
  void take_items(int thread);

  long process_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int, int)>* work_ = nullptr;
  int items_ = 0;
  std::atomic<int> next_{0};
  int busy_ = 0;           // workers that have not finished this round
  unsigned round_ = 0;
  bool stop_ = false;
};

// Deletes a pool, unless this process was forked: then the threads do not exist, and destroying the
// condition variables would wait for them.
struct ThreadPoolDeleter {
  void operator()(ThreadPool* pool) const {
    if (!pool->forked()) delete pool;
  }
};
using ThreadPoolPointer = std::unique_ptr<ThreadPool, ThreadPoolDeleter>;

}  // namespace nes
