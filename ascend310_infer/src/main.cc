// Runs an exported network over an ImageNet-style folder on MindSpore Lite and writes the logits of each image.

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
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

std::string Format(const char *format, double a, double b, double c) {
  char text[256];
  std::snprintf(text, sizeof(text), format, a, b, c);
  return text;
}

int Run(const Options &options) {
  // What can be told cheaply is told before the model is compiled, which takes minutes on a card.
  const std::vector<Item> items = ListImages(options.dataset_path);
  const Spec spec = ReadSpec(SpecPath(options.mindir_path));
  if (options.batch_size != 0 && options.batch_size != spec.input_shape[0]) {
    const std::string wanted = std::to_string(options.batch_size);
    throw UserError("--batch_size " + wanted + ": " + options.mindir_path + " takes " +
                    std::to_string(spec.input_shape[0]) + " images a batch; export.py --batch_size " + wanted +
                    " makes one for " + wanted);
  }
  PrepareResultFolder(options.result_path);
  MakeFolder(options.time_path);
  Runtime runtime(options.mindir_path, spec, options.device_target, options.device_id);

  const int processors = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const int threads = options.threads == 0 ? processors : options.threads;
  const Report report = RunPipeline(items, spec, options.result_path, threads, &runtime);

  const double images = static_cast<double>(std::max<size_t>(report.images, 1));
  const std::string model = Format("average model time: %.3f ms an image (%.0f images, %.0f a batch)\n",
                                   report.model_seconds * 1e3 / images, static_cast<double>(report.images),
                                   runtime.batch_size());
  const std::string whole = Format("end to end: %.1f s, %.1f images/s (model alone: %.1f images/s)\n", report.seconds,
                                   static_cast<double>(report.images) / report.seconds,
                                   static_cast<double>(report.images) / std::max(report.model_seconds, 1e-9));
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

int main(int argc, char **argv) {
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
  } catch (const std::exception &error) {
    std::cerr << "error: " << error.what() << std::endl;
    return ddrnet::kBadInput;
  }
}
