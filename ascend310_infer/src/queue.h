// A first-in-first-out queue between threads that holds a bounded number of entries.
#ifndef DDRNET_QUEUE_H_
#define DDRNET_QUEUE_H_

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <utility>

namespace ddrnet {

template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // Waits for room. False, and the entry is dropped, once the queue is closed.
  bool Push(T entry) {
    std::unique_lock<std::mutex> lock(mutex_);
    room_.wait(lock, [this] { return closed_ || entries_.size() < capacity_; });
    if (closed_) return false;
    entries_.push_back(std::move(entry));
    filled_.notify_one();
    return true;
  }

  // Waits for an entry. False once the queue is closed and empty.
  bool Pop(T* entry) {
    std::unique_lock<std::mutex> lock(mutex_);
    filled_.wait(lock, [this] { return closed_ || !entries_.empty(); });
    if (entries_.empty()) return false;
    *entry = std::move(entries_.front());
    entries_.pop_front();
    room_.notify_one();
    return true;
  }

  // No more entries come; those inside are still handed out.
  void Close() { End(false); }

  // Nothing more comes or goes: those inside are dropped, and whoever waits is let go.
  void Abandon() { End(true); }

 private:
  void End(bool drop) {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    if (drop) entries_.clear();
    filled_.notify_all();
    room_.notify_all();
  }

  const size_t capacity_;
  std::mutex mutex_;
  std::condition_variable filled_, room_;
  std::deque<T> entries_;
  bool closed_ = false;
};

}  // namespace ddrnet

#endif  // DDRNET_QUEUE_H_
