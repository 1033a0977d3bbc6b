// Feeds damaged images and specifications to the code that reads them. Built with sanitizers, it ends at the first
// error of memory; without, at a crash.
//
//   fuzz_images SPEC.json COUNT SEED FILE...
//
// COUNT inputs are drawn from the files: each has some bytes changed, moved, cut away or repeated. Prints how many of
// them could still be decoded. An input is drawn from (SEED, its number) alone; it is kept in fuzz_input.bin while it
// is tried, so that the one that crashed is there.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "error.h"
#include "files.h"
#include "image_files.h"
#include "preprocess.h"
#include "spec.h"

namespace {

using Bytes = std::vector<uint8_t>;

void Mutate(std::mt19937_64* random, Bytes* bytes) {
  const auto below = [random](size_t limit) { return static_cast<size_t>((*random)() % limit); };
  // Headers decide what the rest means, so half of the changes go there.
  const auto place = [&] { return below(below(2) == 0 ? std::min<size_t>(bytes->size(), 700) : bytes->size()); };
  const size_t changes = 1 + below(8);
  for (size_t i = 0; i < changes && !bytes->empty(); ++i) {
    const size_t at = place();
    const size_t length = std::min(bytes->size() - at, 1 + below(64));
    switch (below(7)) {
      case 0: (*bytes)[at] ^= static_cast<uint8_t>(1u << below(8)); break;
      case 1: (*bytes)[at] = static_cast<uint8_t>(below(256)); break;
      case 2: (*bytes)[at] = 0xFF; break;
      case 3: bytes->resize(at); break;
      case 4:
        bytes->erase(bytes->begin() + static_cast<long>(at), bytes->begin() + static_cast<long>(at + length));
        break;
      case 5: {
        const Bytes part(bytes->begin() + static_cast<long>(at), bytes->begin() + static_cast<long>(at + length));
        bytes->insert(bytes->begin() + static_cast<long>(place()), part.begin(), part.end());
        break;
      }
      default:
        for (size_t j = 0; j < length; ++j) (*bytes)[at + j] = static_cast<uint8_t>(below(256));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::cerr << "usage: fuzz_images SPEC.json COUNT SEED FILE..." << std::endl;
    return 2;
  }
  std::vector<Bytes> files;
  Bytes spec_text;
  for (int i = 4; i < argc; ++i) {
    files.emplace_back();
    if (!ddrnet::ReadFile(argv[i], ddrnet::kMaxImageBytes, &files.back()).empty()) {
      std::cerr << "error: " << argv[i] << ": cannot be read" << std::endl;
      return 2;
    }
  }
  if (!ddrnet::ReadFile(argv[1], ddrnet::kMaxImageBytes, &spec_text).empty()) {
    std::cerr << "error: " << argv[1] << ": cannot be read" << std::endl;
    return 2;
  }
  const ddrnet::Preprocess preprocess(ddrnet::ReadSpec(argv[1]));
  std::vector<float> tensor(preprocess.OutputSize());
  const long count = std::atol(argv[2]);
  const long seed = std::atol(argv[3]);
  long decoded = 0, parsed = 0;
  for (long number = 0; number < count; ++number) {
    std::seed_seq sequence{seed, number};
    std::mt19937_64 random(sequence);
    Bytes bytes = files[static_cast<size_t>(random() % files.size())];
    Mutate(&random, &bytes);
    if (std::FILE* file = std::fopen("fuzz_input.bin", "wb")) {
      std::fwrite(bytes.data(), 1, bytes.size(), file);
      std::fclose(file);
    }
    try {
      preprocess(bytes, tensor.data());
      ++decoded;
    } catch (const ddrnet::ImageError&) {
      // What a damaged image is meant to end in.
    }
    Bytes text = spec_text;
    Mutate(&random, &text);
    try {
      ddrnet::ParseSpec("spec", std::string(text.begin(), text.end()));
      ++parsed;
    } catch (const ddrnet::UserError&) {
      // Likewise.
    }
  }
  std::remove("fuzz_input.bin");
  std::printf("images: %ld of %ld decoded; specifications: %ld read\n", decoded, count, parsed);
  return 0;
}
