// The mean of the ranks' gradients, where all of them are on one machine: through memory that they share.
//
// The gradients, one behind the other, go through it in pieces that stay in the cache. In each round a rank puts in its
// own values of a piece, adds up its part of the piece before, rank 0's values first, and takes out the whole mean of
// the one before that; then it waits for the others. So each sum is made once, in the ranks' order, and is the same on
// all of them whatever the timing.

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <string>

#include "kernels.h"

namespace ddrnet {
namespace {

constexpr int64_t kPiece = 1 << 17;   // floats
constexpr int64_t kAtOnce = 1 << 11;  // floats that are added up at once
constexpr int64_t kSlots = 2;         // pieces of a rank: one that it fills, one that is added up
constexpr int kSpins = 4000;          // looks before it sleeps
constexpr long kNap = 100'000'000;    // nanoseconds of sleep before it looks whether the others live

struct alignas(64) Place {         // a rank's own line of the cache
  std::atomic<uint32_t> rounds;    // that the rank has ended, modulo 2^32
  std::atomic<uint32_t> sleepers;  // that wait for the next
  std::atomic<int64_t> floats;     // that it brings this time
};
static_assert(std::atomic<uint32_t>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free);

struct Meeting {
  char* memory = nullptr;
  int64_t bytes = 0;
  int rank = 0, world = 0;
  std::vector<pid_t> processes;
  std::chrono::duration<double> limit;
  uint32_t rounds = 0;
  std::string trouble;  // why this rank waits for the others no longer

  Place& PlaceOf(int of) const { return reinterpret_cast<Place*>(memory)[of]; }
  float* Slot(int of, int64_t piece) const {  // of the rank `of`, or, where that is `world`, of the mean
    float* slots = reinterpret_cast<float*>(memory + world * sizeof(Place));
    return slots + (of * kSlots + piece % kSlots) * kPiece;
  }
};
Meeting meeting;  // there is one at a time

int64_t BytesFor(int world) { return world * sizeof(Place) + (world + 1) * kSlots * kPiece * sizeof(float); }

long Futex(std::atomic<uint32_t>* word, int what, uint32_t value, const timespec* limit) {
  return syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), what, value, limit, nullptr, 0);
}

// Waits until another rank has ended so many rounds; false: it will not.
bool WaitFor(int rank, uint32_t rounds) {
  Place& place = meeting.PlaceOf(rank);
  const auto is_behind = [&](uint32_t seen) { return static_cast<int32_t>(seen - rounds) < 0; };
  for (int i = 0; i < kSpins; ++i) {
    if (!is_behind(place.rounds.load(std::memory_order_acquire))) return true;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  const auto begin = std::chrono::steady_clock::now();
  place.sleepers.fetch_add(1);
  while (true) {
    const uint32_t seen = place.rounds.load();
    if (!is_behind(seen)) break;
    const timespec nap = {0, kNap};
    if (Futex(&place.rounds, FUTEX_WAIT, seen, &nap) == 0 || errno != ETIMEDOUT) continue;
    if (!is_behind(place.rounds.load())) break;
    if (kill(meeting.processes[rank], 0) != 0 && errno == ESRCH) {
      meeting.trouble = "rank " + std::to_string(rank) + " has ended in the middle of a step";
      return false;
    }
    if (std::chrono::steady_clock::now() - begin > meeting.limit) {
      meeting.trouble = "rank " + std::to_string(rank) + " has not come to a step for too long";
      return false;
    }
  }
  place.sleepers.fetch_sub(1);
  return true;
}

void EndRound() {
  Place& own = meeting.PlaceOf(meeting.rank);
  own.rounds.store(++meeting.rounds);
  if (own.sleepers.load() != 0) Futex(&own.rounds, FUTEX_WAKE, meeting.world, nullptr);
}

// The rank's part of a piece, in blocks: to the mean's slot.
void AddUp(int64_t piece, int64_t first, int64_t end, float share) {
  for (int64_t at = first; at < end; at += kAtOnce) {
    const int64_t count = std::min(kAtOnce, end - at);
    float sum[kAtOnce];
    std::memcpy(sum, meeting.Slot(0, piece) + at, count * sizeof(float));
    for (int rank = 1; rank < meeting.world; ++rank) {
      const float* __restrict__ values = meeting.Slot(rank, piece) + at;
      for (int64_t i = 0; i < count; ++i) sum[i] += values[i];
    }
    float* __restrict__ mean = meeting.Slot(meeting.world, piece) + at;
    for (int64_t i = 0; i < count; ++i) mean[i] = sum[i] * share;
  }
}

// Any number of tensors to as many: the mean of all ranks' values.
void MeanOverRanks(const Tensors& t) {
  Require(meeting.memory != nullptr, "the ranks have not met");
  const int count = t.count / 2;
  std::vector<int64_t> starts(count + 1);
  for (int i = 0; i < count; ++i) starts[i + 1] = starts[i] + t.Size(i);
  const int64_t floats = starts[count], pieces = DivideUp(floats, kPiece);
  // Copies the values [first, end) of all tensors, counted through, from the inputs or to the outputs.
  const auto copy = [&](int64_t first, int64_t end, float* slot, bool out) {
    int i = static_cast<int>(std::upper_bound(starts.begin(), starts.end(), first) - starts.begin()) - 1;
    for (; first < end; ++i) {
      const int64_t size = std::min(end, starts[i + 1]) - first;
      float* tensor = t.Out(out ? count + i : i) + (first - starts[i]);
      std::memcpy(out ? tensor : slot, out ? slot : tensor, size * sizeof(float));
      first += size;
      slot += size;
    }
  };

  const auto size_of = [&](int64_t piece) { return std::min(kPiece, floats - piece * kPiece); };
  const int64_t parts = Threads();
  const uint32_t before = meeting.rounds;
  meeting.PlaceOf(meeting.rank).floats.store(floats);
  for (int64_t round = 0; round < pieces + 2; ++round) {
    for (int rank = 0; rank < meeting.world; ++rank) {
      if (rank != meeting.rank && !WaitFor(rank, before + static_cast<uint32_t>(round))) return;
      Require(round != 1 || meeting.PlaceOf(rank).floats.load() == floats, "the ranks bring different gradients");
    }
    Parallel(3 * parts, [&](int64_t job) {
      const int64_t what = job / parts, piece = round - what, part = job % parts;
      if (piece < 0 || piece >= pieces) return;
      const int64_t size = size_of(piece), first = size * part / parts, end = size * (part + 1) / parts;
      if (what == 1) {
        const int64_t own = parts * meeting.rank + part, all = parts * meeting.world;
        AddUp(piece, size * own / all, size * (own + 1) / all, 1.0f / static_cast<float>(meeting.world));
      } else {
        const bool out = what == 2;
        copy(piece * kPiece + first, piece * kPiece + end,
             meeting.Slot(out ? meeting.world : meeting.rank, piece) + first, out);
      }
    });
    EndRound();
  }
}

}  // namespace
}  // namespace ddrnet

// As DDRNET_OPERATOR has it; but why a rank waits no longer is the caller's to say.
extern "C" int mean_over_ranks(int count, void** data, int* ranks, int64_t** shapes, const char**, void*, void*) {
  const int code = ddrnet::Run("mean_over_ranks", ddrnet::MeanOverRanks, ddrnet::Tensors{count, data, ranks, shapes});
  return code != 0 || !ddrnet::meeting.trouble.empty();
}

// Why this rank waits for the others no longer; empty: it does.
extern "C" const char* ddrnet_meeting_trouble() { return ddrnet::meeting.trouble.c_str(); }

extern "C" int64_t ddrnet_meeting_bytes(int world) { return ddrnet::BytesFor(world); }

// Takes part in a meeting of ranks in the memory of a file, which the system has filled with zeros: 0, or what is in
// errno. `processes` are all ranks' numbers by rank; `limit` is how many seconds a rank is waited for.
extern "C" int ddrnet_meet(int file, int rank, int world, const int* processes, double limit) {
  using ddrnet::meeting;
  const int64_t bytes = ddrnet::BytesFor(world);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) return errno;
  if (meeting.memory != nullptr) munmap(meeting.memory, meeting.bytes);
  meeting = {};
  meeting.memory = static_cast<char*>(memory);
  meeting.bytes = bytes;
  meeting.rank = rank;
  meeting.world = world;
  meeting.processes.assign(processes, processes + world);
  meeting.limit = std::chrono::duration<double>(limit);
  return 0;
}
