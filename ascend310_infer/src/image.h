// An image in memory.
#ifndef DDRNET_IMAGE_H_
#define DDRNET_IMAGE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ddrnet {

// Four bytes a pixel (red, green, blue, one unused), rows from the top, without gaps. Four and not three, so that a
// pixel is one vector in the resampling loops.
struct Image {
  int width = 0;
  int height = 0;
  std::vector<uint8_t> pixels;

  void Allocate(int new_width, int new_height) {
    width = new_width;
    height = new_height;
    pixels.resize(static_cast<size_t>(width) * height * 4);
  }
  uint8_t* Row(int y) { return pixels.data() + static_cast<size_t>(y) * width * 4; }
  const uint8_t* Row(int y) const { return pixels.data() + static_cast<size_t>(y) * width * 4; }
};

}  // namespace ddrnet

#endif  // DDRNET_IMAGE_H_
