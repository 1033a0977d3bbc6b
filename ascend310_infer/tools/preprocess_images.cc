// Preprocesses images as `main` does, without a model: to compare with the Python side and to time decoding.
//
//   preprocess_images SPEC.json OUTPUT FILE...       writes the tensors of the files one after another, float32
//   preprocess_images SPEC.json --time THREADS FILE...  prints images/s with so many threads, as "images/s: N"
//   preprocess_images --pixels OUTPUT FILE...        writes each file's pixels as they are decoded: width and height,
//                                                    int32, then RGB; 0 x 0 for one that is refused. Prints a line a
//                                                    file: "decoded", or why it is refused

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "decode.h"
#include "error.h"
#include "files.h"
#include "image_files.h"
#include "preprocess.h"
#include "spec.h"

namespace ddrnet {
namespace {

std::vector<uint8_t> Read(const std::string& path) {
  std::vector<uint8_t> bytes;
  const std::string problem = ReadFile(path, kMaxImageBytes, &bytes);
  if (!problem.empty()) throw ImageError(problem);
  return bytes;
}

void Dump(const Preprocess& preprocess, const std::vector<std::string>& paths, const std::string& output) {
  std::ofstream file(output, std::ios::binary);
  std::vector<float> tensor(preprocess.OutputSize());
  for (const std::string& path : paths) {
    try {
      preprocess(Read(path), tensor.data());
    } catch (const ImageError& error) {
      throw UserError(path + ": " + error.what());
    }
    file.write(reinterpret_cast<const char*>(tensor.data()),
               static_cast<std::streamsize>(tensor.size() * sizeof(float)));
  }
  if (!file.flush()) throw UserError(output + ": cannot be written");
}

void DumpPixels(const std::vector<std::string>& paths, const std::string& output) {
  std::ofstream file(output, std::ios::binary);
  Image image;
  std::vector<char> rgb;
  for (const std::string& path : paths) {
    std::string verdict = "decoded";
    try {
      DecodeImage(Read(path), &image);
    } catch (const ImageError& error) {
      verdict = error.what();
      image.Allocate(0, 0);
    }
    std::printf("%s\n", verdict.c_str());
    const int32_t size[] = {image.width, image.height};
    file.write(reinterpret_cast<const char*>(size), sizeof(size));
    rgb.clear();
    for (size_t i = 0; i < image.pixels.size(); i += 4) {
      rgb.insert(rgb.end(), image.pixels.data() + i, image.pixels.data() + i + 3);
    }
    file.write(rgb.data(), static_cast<std::streamsize>(rgb.size()));
  }
  if (!file.flush()) throw UserError(output + ": cannot be written");
}

void Time(const Preprocess& preprocess, const std::vector<std::string>& paths, int threads) {
  std::atomic<size_t> next{0}, done{0};
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> workers;
  for (int i = 0; i < threads; ++i) {
    workers.emplace_back([&] {
      std::vector<float> tensor(preprocess.OutputSize());
      std::vector<uint8_t> file;
      for (size_t index = next++; index < paths.size(); index = next++) {
        if (!ReadFile(paths[index], kMaxImageBytes, &file).empty()) continue;
        try {
          preprocess(file, tensor.data());
          ++done;
        } catch (const ImageError&) {
          // Not counted.
        }
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("images/s: %.1f\n", static_cast<double>(done) / seconds);
}

}  // namespace
}  // namespace ddrnet

int main(int argc, char** argv) {
  const bool pixels = argc > 3 && std::strcmp(argv[1], "--pixels") == 0;
  const bool timed = argc > 3 && std::strcmp(argv[2], "--time") == 0;
  const int first = timed ? 4 : 3;
  if (argc <= first) {
    std::cerr << "usage: preprocess_images SPEC.json OUTPUT|--time THREADS FILE..." << std::endl;
    return 2;
  }
  try {
    if (pixels) {
      ddrnet::DumpPixels(std::vector<std::string>(argv + 3, argv + argc), argv[2]);
      return 0;
    }
    const ddrnet::Preprocess preprocess(ddrnet::ReadSpec(argv[1]));
    const std::vector<std::string> paths(argv + first, argv + argc);
    if (timed) {
      ddrnet::Time(preprocess, paths, std::max(1, std::atoi(argv[3])));
    } else {
      ddrnet::Dump(preprocess, paths, argv[2]);
    }
  } catch (const ddrnet::UserError& error) {
    std::cerr << "error: " << ddrnet::Printable(error.what()) << std::endl;
    return 2;
  }
  return 0;
}
