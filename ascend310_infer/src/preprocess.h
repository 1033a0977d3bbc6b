// The evaluation transform: from an image file to the network's input, exactly as eval.py does it.
#ifndef DDRNET_PREPROCESS_H_
#define DDRNET_PREPROCESS_H_

#include <cstdint>
#include <vector>

#include "spec.h"

namespace ddrnet {

class Preprocess {
 public:
  explicit Preprocess(const Spec& spec);

  // Floats of one image: 3 * image_size * image_size.
  size_t OutputSize() const;

  // Decodes, resizes, crops and normalises one file into `output`: planes of red, green and blue, rows from the top.
  // Throws ImageError where the file cannot be decoded. Safe to call from several threads.
  void operator()(const std::vector<uint8_t>& file, float* output) const;

 private:
  Spec spec_;
  float normalized_[3][256];  // what each byte of each channel becomes: (byte / 255 - mean) / std
};

}  // namespace ddrnet

#endif  // DDRNET_PREPROCESS_H_
