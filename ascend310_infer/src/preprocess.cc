#include "preprocess.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "decode.h"
#include "error.h"
#include "image_files.h"

namespace ddrnet {
Preprocess::Preprocess(const Spec& spec) : spec_(spec) {
  for (int channel = 0; channel < 3; ++channel) {
    for (int byte = 0; byte < 256; ++byte) {
      normalized_[channel][byte] = static_cast<float>((byte / 255.0 - spec.mean[channel]) / spec.std[channel]);
    }
  }
}

size_t Preprocess::OutputSize() const { return static_cast<size_t>(3) * spec_.image_size * spec_.image_size; }

void Preprocess::operator()(const std::vector<uint8_t>& file, float* output) const {
  Image image, cropped;
  DecodeImage(file, &image);

  const int crop = spec_.image_size;
  const int64_t side = std::llrint(crop / spec_.crop_pct);  // half to even, as Python rounds; not below crop
  int64_t width = side, height = side;
  if (!spec_.squash) {
    if (image.width <= image.height) {
      height = side * image.height / image.width;
    } else {
      width = side * image.width / image.height;
    }
  }
  if (width * height > std::max(static_cast<int64_t>(kMaxPixels), side * side)) {
    throw ImageError("it has " + std::to_string(image.width) + " x " + std::to_string(image.height) +
                     " pixels, too narrow a strip");
  }
  const auto centred = [crop](int64_t length) { return static_cast<int>(std::llrint((length - crop) / 2.0)); };
  ResizeAndCrop(image, spec_.filter, static_cast<int>(width), static_cast<int>(height), centred(width), centred(height),
                crop, crop, &cropped);

  const size_t plane = static_cast<size_t>(crop) * crop;
  for (size_t i = 0; i < plane; ++i) {
    const uint8_t* pixel = cropped.pixels.data() + i * 4;
    for (int channel = 0; channel < 3; ++channel) output[channel * plane + i] = normalized_[channel][pixel[channel]];
  }
}

}  // namespace ddrnet
