#include "pipeline.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <functional>
#include <iostream>
#include <mutex>
#include <thread>

#include "error.h"
#include "files.h"
#include "image_files.h"
#include "preprocess.h"
#include "queue.h"
#include "results.h"

namespace ddrnet {
namespace {

constexpr char kNoMemory[] = "there is not enough memory for it";

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// An image on its way.
struct Slot {
  size_t index = 0;  // in the list of items
  std::vector<uint8_t> file;
  std::vector<float> tensor;
  std::string error;  // why it could not be decoded; empty: it could
};

struct Logits {
  size_t index;
  std::vector<float> values;
};

class Pipeline {
 public:
  Pipeline(const std::vector<Item>& items, const Spec& spec, const std::string& converted_path,
           const std::string& result_path, int threads, Runtime* runtime)
      : items_(items),
        preprocess_(spec),
        converted_path_(converted_path),
        result_path_(result_path),
        threads_(threads),
        runtime_(*runtime),
        slots_(static_cast<size_t>(threads) * 2 + 2 * static_cast<size_t>(runtime->batch_size())),
        free_(slots_.size()),
        read_(slots_.size()),
        decoded_(slots_.size()),
        logits_(static_cast<size_t>(runtime->batch_size()) * 4) {
    for (Slot& slot : slots_) {
      slot.tensor.resize(preprocess_.OutputSize());
      free_.Push(&slot);
    }
  }

  Report Run() {
    const Clock::time_point start = Clock::now();
    std::vector<std::thread> threads;
    const auto launch = [this, &threads](void (Pipeline::*work)()) {
      threads.emplace_back([this, work] { Guard([this, work] { (this->*work)(); }); });
    };
    Guard([this, &launch] {
      launch(&Pipeline::Write);
      launch(&Pipeline::Read);
      for (int i = 0; i < threads_; ++i) launch(&Pipeline::Decode);
      Infer();
    });
    logits_.Close();
    for (std::thread& thread : threads) thread.join();
    if (failure_) std::rethrow_exception(failure_);
    report_.seconds = SecondsSince(start);
    return report_;
  }

 private:
  // Runs one thread's work; where it fails, the first failure is kept and every other thread is let go.
  void Guard(const std::function<void()>& work) {
    try {
      work();
    } catch (...) {
      {
        const std::lock_guard<std::mutex> lock(failure_mutex_);
        if (!failure_) failure_ = std::current_exception();
      }
      free_.Abandon();
      read_.Abandon();
      decoded_.Abandon();
      logits_.Abandon();
    }
  }

  void Read() {
    for (size_t index = 0; index < items_.size(); ++index) {
      Slot* slot = nullptr;
      if (!free_.Pop(&slot)) return;
      slot->index = index;
      try {
        ReadImage(items_[index], slot);
      } catch (const std::bad_alloc&) {
        slot->error = kNoMemory;
      }
      if (!read_.Push(slot)) return;
    }
    read_.Close();
  }

  // Of an image that is neither a JPEG nor a PNG the PNG that preprocess.py made is read, where there is one.
  void ReadImage(const Item& item, Slot* slot) const {
    slot->error = ReadFile(item.path, kMaxImageBytes, &slot->file);
    if (!slot->error.empty() || FormatOf(slot->file) != ImageFormat::kOther || converted_path_.empty()) return;
    std::vector<uint8_t> png;
    if (ReadFile(converted_path_ + "/" + item.converted, kMaxImageBytes, &png).empty()) slot->file = std::move(png);
  }

  void Decode() {
    Slot* slot = nullptr;
    while (read_.Pop(&slot)) {
      if (slot->error.empty()) {
        try {
          preprocess_(slot->file, slot->tensor.data());
        } catch (const ImageError& error) {
          slot->error = error.what();
        } catch (const std::bad_alloc&) {
          slot->error = kNoMemory;
        }
      }
      if (!decoded_.Push(slot)) return;
    }
  }

  // Hands the decoded slots out in the order of the items. Null at the end, or once another thread has failed.
  Slot* Next() {
    if (next_ == items_.size()) return nullptr;
    const auto is_next = [this](const Slot* slot) { return slot->index == next_; };
    auto found = std::find_if(early_.begin(), early_.end(), is_next);
    while (found == early_.end()) {
      Slot* slot = nullptr;
      if (!decoded_.Pop(&slot)) return nullptr;
      early_.push_back(slot);
      found = std::find_if(early_.end() - 1, early_.end(), is_next);
    }
    Slot* slot = *found;
    early_.erase(found);
    ++next_;
    return slot;
  }

  void Infer() {
    std::vector<size_t> batch;
    while (Slot* slot = Next()) {
      if (!slot->error.empty()) {
        std::cerr << Printable("cannot decode " + items_[slot->index].path + ": " + slot->error) << std::endl;
        ++report_.undecodable;
      } else {
        std::memcpy(runtime_.Input(static_cast<int>(batch.size())), slot->tensor.data(),
                    slot->tensor.size() * sizeof(float));
        batch.push_back(slot->index);
      }
      free_.Push(slot);
      if (static_cast<int>(batch.size()) == runtime_.batch_size() && !InferBatch(&batch)) return;
    }
    if (!batch.empty()) InferBatch(&batch);
  }

  // Runs the network on a batch, the rest of it padded, and empties it. False once another thread has failed.
  bool InferBatch(std::vector<size_t>* batch) {
    for (int pad = static_cast<int>(batch->size()); pad < runtime_.batch_size(); ++pad) {
      std::memset(runtime_.Input(pad), 0, preprocess_.OutputSize() * sizeof(float));
    }
    const Clock::time_point start = Clock::now();
    const float* logits = runtime_.Run();
    report_.model_seconds += SecondsSince(start);
    for (const size_t index : *batch) {
      if (!logits_.Push({index, std::vector<float>(logits, logits + runtime_.classes())})) return false;
      logits += runtime_.classes();
      ++report_.images;
    }
    batch->clear();
    return true;
  }

  void Write() {
    Logits logits{};
    while (logits_.Pop(&logits)) {
      WriteFile(result_path_ + "/" + items_[logits.index].result_name, logits.values.data(),
                logits.values.size() * sizeof(float));
    }
  }

  const std::vector<Item>& items_;
  const Preprocess preprocess_;
  const std::string converted_path_, result_path_;
  const int threads_;
  Runtime& runtime_;
  std::vector<Slot> slots_;
  BoundedQueue<Slot*> free_, read_, decoded_;
  BoundedQueue<Logits> logits_;
  std::vector<Slot*> early_;  // decoded before their turn
  size_t next_ = 0;           // the item whose turn it is
  Report report_;
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
};

}  // namespace

Report RunPipeline(const std::vector<Item>& items, const Spec& spec, const std::string& converted_path,
                   const std::string& result_path, int threads, Runtime* runtime) {
  return Pipeline(items, spec, converted_path, result_path, threads, runtime).Run();
}

}  // namespace ddrnet
