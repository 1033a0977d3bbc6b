// Runs an exported network over an ImageNet-style folder on MindSpore Lite and writes the logits of each image.

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <new>
#include <string>
#include <thread>

#include "dataset.h"
#include "error.h"
#include "options.h"
#include "pipeline.h"
#include "results.h"
#include "runtime.h"
#include "spec.h"

namespace ddrnet {
namespace {

constexpr int kBadInput = 2, kUndecodable = 3;

// One digit after the point, or as many as are asked for.
std::string Fixed(double value, int digits = 1) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", digits, value);
  return text;
}

int Run(const Options& options) {
  // What can be told cheaply is told before the model is compiled, which takes minutes on a card.
  const std::vector<Item> items = ListImages(options.dataset_path);
  const Spec spec = ReadSpec(SpecPath(options.mindir_path));
  if (options.batch_size != 0 && options.batch_size != spec.input_shape[0]) {
    const std::string wanted = std::to_string(options.batch_size);
    throw UserError("--batch_size " + wanted + ": " + options.mindir_path + " takes " +
                    std::to_string(spec.input_shape[0]) + " images a batch; export.py --batch_size " + wanted +
                    " makes one for " + wanted);
  }
  CheckSum(options.mindir_path, spec);
  const std::string unreadable = Unreadable(items, options.converted_path);
  if (!unreadable.empty()) {
    std::cerr << Printable("not read here: " + unreadable + " images of " + std::to_string(items.size()) +
                           "; preprocess.py makes PNGs of them for --converted_path")
              << std::endl;
  }
  PrepareResultFolder(options.result_path);
  MakeFolder(options.time_path);
  Runtime runtime(options.mindir_path, spec, options.device_target, options.device_id);

  const int processors = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const int threads = options.threads == 0 ? processors : options.threads;
  const Report report = RunPipeline(items, spec, options.converted_path, options.result_path, threads, &runtime);

  const auto images = static_cast<double>(std::max<size_t>(report.images, 1));
  const std::string model = "average model time: " + Fixed(report.model_seconds * 1e3 / images, 3) + " ms an image (" +
                            std::to_string(report.images) + " images, " + std::to_string(runtime.batch_size()) +
                            " a batch)\n";
  const auto done = static_cast<double>(report.images);
  const std::string whole = "end to end: " + Fixed(report.seconds) + " s, " + Fixed(done / report.seconds) +
                            " images/s (model alone: " + Fixed(done / std::max(report.model_seconds, 1e-9)) +
                            " images/s)\n";
  const std::string text = model + whole;
  WriteFile(options.time_path + "/test_perform_static.txt", text.data(), text.size());
  std::cout << text << std::flush;
  if (report.undecodable > 0) {
    std::cerr << report.undecodable << " of " << items.size() << " images could not be decoded" << std::endl;
    return kUndecodable;
  }
  return 0;
}

}  // namespace
}  // namespace ddrnet

int main(int argc, char** argv) {
  // MindSpore Lite reports each failure in pages, and has read how much to report before main() begins: the program
  // starts itself once more with its log off. Whoever sets GLOG_v gets it.
  if (getenv("GLOG_v") == nullptr) {
    setenv("GLOG_v", "4", 0);
    execv("/proc/self/exe", argv);
  }
  try {
    const ddrnet::Options options = ddrnet::ParseOptions(argc, argv);
    if (options.help) {
      std::cout << ddrnet::kUsage;
      return 0;
    }
    return ddrnet::Run(options);
  } catch (const std::bad_alloc&) {
    std::cerr << "error: there is not enough memory; fewer --threads take less" << std::endl;
    return ddrnet::kBadInput;
  } catch (const std::exception& error) {
    std::cerr << "error: " << ddrnet::Printable(error.what()) << std::endl;
    return ddrnet::kBadInput;
  }
}
