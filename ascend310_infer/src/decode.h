// Image files to pixels, the same pixels that Pillow gives the Python side.
#ifndef DDRNET_DECODE_H_
#define DDRNET_DECODE_H_

#include <cstdint>
#include <vector>

#include "image.h"

namespace ddrnet {

// Decodes a JPEG or PNG file, told apart by its first bytes and not by its name, to RGB; BareJpeg and BarePng check it.
// Greyscale is repeated over the channels, CMYK converted, a palette looked up, and transparency dropped. 16-bit
// greyscale is scaled to 8 bits, other 16-bit channels keep their high byte. Throws ImageError with the reason.
void DecodeImage(const std::vector<uint8_t>& file, Image* image);

}  // namespace ddrnet

#endif  // DDRNET_DECODE_H_
