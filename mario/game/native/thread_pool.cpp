// Starts, wakes and stops the threads.
#include "thread_pool.hpp"

#if defined(_WIN32)
#include <process.h>
#else
#include <unistd.h>
#endif

namespace nes {
namespace {

long this_process() {
#if defined(_WIN32)
  return _getpid();
#else
  return getpid();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) : process_(this_process()) {
  for (int thread = 1; thread < threads; ++thread)
    workers_.emplace_back([this, thread] { worker(thread); });
}

bool ThreadPool::forked() const { return this_process() != process_; }

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int items, const std::function<void(int, int)>& work) {
  if (workers_.empty() || items <= 1 || forked()) {
    for (int item = 0; item < items; ++item) work(item, 0);
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    work_ = &work;
    items_ = items;
    next_.store(0, std::memory_order_relaxed);
    busy_ = static_cast<int>(workers_.size());
    ++round_;
  }
  wake_.notify_all();
  take_items(0);
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [this] { return busy_ == 0; });
}

void ThreadPool::take_items(int thread) {
  for (int item; (item = next_.fetch_add(1, std::memory_order_relaxed)) < items_;)
    (*work_)(item, thread);
}

void ThreadPool::worker(int thread) {
  unsigned seen = 0;
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || round_ != seen; });
      if (stop_) return;
      seen = round_;
    }
    take_items(thread);
    bool last;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      last = --busy_ == 0;
    }
    if (last) done_.notify_one();
  }
}

}  // namespace nes
