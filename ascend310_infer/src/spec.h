// What export.py says about a network, in the .json beside its MindIR; src/serving/description.py writes it.
#ifndef DDRNET_SPEC_H_
#define DDRNET_SPEC_H_

#include <cstdint>
#include <string>
#include <vector>

#include "resize.h"

namespace ddrnet {

struct Spec {
  int image_size = 0;   // side of the network's input, pixels
  bool squash = true;   // resize both sides to resize_to, or (crop_mode center) the shorter one
  double crop_pct = 0;  // share of the resized side that is kept
  Filter filter = Filter::kBicubic;
  double mean[3] = {};  // of red, green and blue, as shares of 255
  double std[3] = {};
  std::vector<int64_t> input_shape;   // N, 3, H, W
  std::vector<int64_t> output_shape;  // N, classes
  std::string file;                   // the exported file's name when it was described; empty: not told
  std::string sha256;                 // and its checksum, in hexadecimal
};

// "model.mindir" to "model.json", in the same folder.
std::string SpecPath(const std::string& mindir_path);

// Throws UserError, naming the file and the key, where the text is malformed or contradicts itself.
Spec ParseSpec(const std::string& path, const std::string& text);

// Likewise for a file, which may also be missing.
Spec ReadSpec(const std::string& path);

// Throws UserError where the MindIR is another than the one that was described. One of an older export.py, which wrote
// no checksum, passes.
void CheckSum(const std::string& mindir_path, const Spec& spec);

}  // namespace ddrnet

#endif  // DDRNET_SPEC_H_
