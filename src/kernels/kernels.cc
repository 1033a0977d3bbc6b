#include "kernels.h"

#include <sched.h>
#include <sys/mman.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <unordered_set>

namespace ddrnet {
namespace {

template <Factors factors, int vectors, bool indirect = false>
void TileOf(const float* const* rows, int64_t taps, int64_t depth, const float* panel, float* const* out,
            const Frame& frame, const float* const* columns = nullptr) {
  constexpr int m = RowsOf(vectors);
  Vec sum[m][vectors];
#pragma GCC unroll 16
  for (int i = 0; i < m; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[i][v] = Vec{};
  }
  if (frame.start != Frame::Start::kZero) {
#pragma GCC unroll 16
    for (int i = 0; i < m; ++i) {
      const float* from = frame.start == Frame::Start::kBias ? frame.bias : out[i];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[i][v] = *reinterpret_cast<const VecU*>(from + v * kLanes);
    }
  }
  const float* next = frame.next ? frame.next : panel;
  for (int64_t t = 0; t < taps; ++t, rows += m) {
    const float* row[m];
    for (int i = 0; i < m; ++i) row[i] = rows[i] + depth;
    for (int64_t k = -depth; k < 0; ++k, panel += vectors * kLanes) {
      if constexpr (!indirect) {
        __builtin_prefetch(next, 0, 2);
        next += kLine;
      }
      const float* from = indirect ? columns[depth + k] : panel;
      Vec column[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) column[v] = *reinterpret_cast<const VecU*>(from + v * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < m; ++i) {
        const Vec value = Broadcast(row[i][k]);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
          if constexpr (factors == Factors::kFloat32) {
            sum[i][v] += value * column[v];
          } else {
            sum[i][v] = AddProducts(sum[i][v], value, column[v]);
          }
        }
      }
    }
  }
  if (frame.shortcut) {
#pragma GCC unroll 16
    for (int i = 0; i < m; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[i][v] += *reinterpret_cast<const VecU*>(frame.shortcut[i] + v * kLanes);
    }
  }
  if (frame.relu) {
#pragma GCC unroll 16
    for (int i = 0; i < m; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[i][v] = Relu(sum[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < m; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) *reinterpret_cast<VecU*>(out[i] + v * kLanes) = sum[i][v];
  }
}

template <Factors factors>
void TileOfAny(int vectors, const float* const* rows, int64_t taps, int64_t depth, const float* panel,
               float* const* out, const Frame& frame) {
  switch (vectors) {
    case 1: return TileOf<factors, 1>(rows, taps, depth, panel, out, frame);
    case 2: return TileOf<factors, 2>(rows, taps, depth, panel, out, frame);
#if defined(__AVX512F__) || !defined(__AVX__)
    case 3: return TileOf<factors, 3>(rows, taps, depth, panel, out, frame);
    case 4: return TileOf<factors, 4>(rows, taps, depth, panel, out, frame);
#endif
  }
}

}  // namespace

void Tile(Factors factors, int vectors, const float* const* rows, int64_t taps, int64_t depth, const float* panel,
          float* const* out, const Frame& frame) {
  Require(vectors >= 1 && vectors <= kMostVectors, "Tile: no such width");
  Require(taps >= 0 && depth >= 1, "Tile: nothing to add up");
  Require(reinterpret_cast<uintptr_t>(panel) % sizeof(float) == 0, "Tile: the panel is not aligned");
  Require(factors == Factors::kFloat32 || kHasBfloat16, "Tile: this processor has no bfloat16");
  Require(frame.start != Frame::Start::kBias || frame.bias != nullptr, "Tile: there is no bias");
  if (factors == Factors::kFloat32) {
    TileOfAny<Factors::kFloat32>(vectors, rows, taps, depth, panel, out, frame);
  } else {
    TileOfAny<Factors::kBfloat16>(vectors, rows, taps, depth, panel, out, frame);
  }
}

void IndirectTile(const float* const* rows, int64_t depth, const float* const* columns, float* const* out,
                  const Frame& frame) {
  Require(depth >= 1, "IndirectTile: nothing to add up");
  TileOf<Factors::kFloat32, kMostVectors, true>(rows, 1, depth, nullptr, out, frame, columns);
}

namespace {

#if defined(__x86_64__)
unsigned DropDenormals() {  // returns the mode so far
  const unsigned mode = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(mode | 0x8040);
  return mode;
}
void RestoreMode(unsigned mode) { __builtin_ia32_ldmxcsr(mode); }
#else
unsigned DropDenormals() { return 0; }
void RestoreMode(unsigned) {}
#endif

int most_threads = 0;  // 0: as many as there are cores

// Threads that sleep between operators. Each takes indices one by one from a share of its own, the same of every
// operator: what it has written it reads again from its own cache. Then it takes what others have left, so a thread
// whose core is busy with something else (decoding the next batch) delays nobody; one that wakes too late finds nothing
// to do and is not waited for.
class Pool {
 public:
  Pool() {
    cpu_set_t set;
    size_ = sched_getaffinity(0, sizeof(set), &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
    if (most_threads > 0) size_ = std::min(size_, most_threads);
    shares_ = std::make_unique<Share[]>(size_);
    for (int i = 1; i < size_; ++i) {
      try {
        std::thread([this, i] { Work(i); }).detach();
      } catch (const std::system_error&) {  // the system grants no more of them
        size_ = i;
      }
    }
  }

  int size() const { return size_; }

  void Run(int64_t count, const std::function<void(int64_t)>& work) {
    if (size_ == 1 || count == 1) {
      for (int64_t i = 0; i < count; ++i) work(i);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      work_ = &work;
      for (int i = 0; i < size_; ++i) shares_[i].next = count * i / size_, shares_[i].end = count * (i + 1) / size_;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    Take(work, 0);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      work_ = nullptr;
    }
    for (int i = 0; i < kLooks && active_.load(std::memory_order_relaxed) != 0; ++i) Pause();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return active_ == 0; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void Take(const std::function<void(int64_t)>& work, int thread) {
    try {
      for (int i = 0; i < size_; ++i) {
        Share& share = shares_[(thread + i) % size_];
        for (int64_t job = share.next.fetch_add(1); job < share.end; job = share.next.fetch_add(1)) work(job);
      }
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
      for (int i = 0; i < size_; ++i) shares_[i].next = shares_[i].end;  // what is left need not be begun
    }
  }

  void Work(int thread) {
    DropDenormals();
    int64_t seen = 0;
    while (true) {
      for (int i = 0; i < kLooks && generation_.load(std::memory_order_relaxed) == seen; ++i) Pause();
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return work_ != nullptr && generation_ != seen; });
      seen = generation_;
      ++active_;
      const auto* work = work_;
      lock.unlock();
      Take(*work, thread);
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  static void Pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  // What is waited for, the next operator or the last job of this one, is often a few microseconds away: cheaper to
  // look than to sleep and be woken.
  static constexpr int kLooks = 2000;

  int size_;
  std::atomic<int> active_{0};
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::exception_ptr error_;
  const std::function<void(int64_t)>* work_ = nullptr;
  std::unique_ptr<Share[]> shares_;
  std::atomic<int64_t> generation_{0};
};

Pool& ThePool() {
  static Pool* pool = new Pool;  // never destroyed: its threads may outlive main
  return *pool;
}

std::mutex operator_mutex;

constexpr uintptr_t kPage = 1 << 21;  // bytes of a huge page

// Gathers what tensors lie in into huge pages, where the system grants them: streams of weights and activations then
// miss the TLB less often. Each page of memory is asked for once. Of bfloat16 a tensor is half as large as is asked for
// here; its type is not looked at, as MindSpore does not tell that of every output where there are several.
void GatherPages(const Tensors& tensors) {
#if defined(__linux__)
  constexpr int kCollapse = 25;          // MADV_COLLAPSE, of Linux 6.1; an older one refuses it
  constexpr int64_t kLeast = 64 * 1024;  // numbers
  static auto* asked = new std::unordered_set<uintptr_t>;
  for (int i = 0; i < tensors.count; ++i) {
    const int64_t size = tensors.Size(i);
    if (size < kLeast) continue;
    const auto first = reinterpret_cast<uintptr_t>(tensors.data[i]), last = first + size * sizeof(float);
    for (uintptr_t page = first / kPage; page * kPage < last; ++page) {
      if (!asked->insert(page).second) continue;
      void* memory = reinterpret_cast<void*>(page * kPage);
      madvise(memory, kPage, MADV_HUGEPAGE);
      madvise(memory, kPage, kCollapse);
    }
  }
#endif
}

// In huge pages where the system grants them.
float* Allocate(int64_t floats) {
  const int64_t bytes = DivideUp(floats * static_cast<int64_t>(sizeof(float)), kPage) * kPage;
  void* memory = std::aligned_alloc(kPage, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  madvise(memory, bytes, MADV_HUGEPAGE);
  return static_cast<float*>(memory);
}

// Memory that grows: what a run asks for at most is soon known.
class Arena {
 public:
  float* Hold(int64_t floats) {
    if (floats_ < floats) {
      std::free(std::exchange(memory_, nullptr));
      floats_ = 0;
      memory_ = Allocate(floats);
      floats_ = floats;
    }
    return memory_;
  }

 private:
  float* memory_ = nullptr;
  int64_t floats_ = 0;
};
thread_local Arena thread_arena;

// The same piece by piece. What does not fit lies elsewhere, until all pieces are given back; then there is room.
class Pieces {
 public:
  float* Take(int64_t floats) {
    floats = DivideUp(floats, kLine) * kLine;
    taken_ += floats;
    if (taken_ <= room_) return arena_.Hold(room_) + taken_ - floats;
    more_.push_back(nullptr);
    return more_.back() = Allocate(floats);
  }

  void GiveBack() {
    for (float* memory : more_) std::free(memory);
    more_.clear();
    room_ = std::max(room_, std::exchange(taken_, 0));
  }

 private:
  Arena arena_;
  int64_t room_ = 0, taken_ = 0;
  std::vector<float*> more_;
};
Pieces scratch;

}  // namespace

void Parallel(int64_t count, const std::function<void(int64_t)>& work) { ThePool().Run(count, work); }
int Threads() { return ThePool().size(); }

float* Scratch(int64_t floats) { return scratch.Take(floats); }
float* ThreadScratch(int64_t floats) { return thread_arena.Hold(floats); }

int Run(const char* name, void (*call)(const Tensors&), const Tensors& tensors) noexcept {
  try {
    Exclusive exclusive;
    GatherPages(tensors);
    call(tensors);
    return 0;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "CPU kernel %s: not enough memory\n", name);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "CPU kernel %s: %s\n", name, error.what());
  }
  return 1;
}

Exclusive::Exclusive() {
  operator_mutex.lock();
  mode_ = DropDenormals();
}
Exclusive::~Exclusive() {
  scratch.GiveBack();
  RestoreMode(mode_);
  operator_mutex.unlock();
}

}  // namespace ddrnet

// Before the first operator runs.
extern "C" void ddrnet_limit_threads(int most) { ddrnet::most_threads = most; }
extern "C" int ddrnet_threads() { return ddrnet::Threads(); }
