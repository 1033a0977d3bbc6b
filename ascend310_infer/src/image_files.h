// JPEG and PNG files reduced to what their pixels need, and checked, before a decoder sees them.
//
// The same rules as in src/data/image_files.py, which says why: both sides take and refuse the same files, whatever
// libjpeg, libpng and Pillow of whatever version make of damage, odd metadata and rare kinds.
#ifndef DDRNET_IMAGE_FILES_H_
#define DDRNET_IMAGE_FILES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ddrnet {

constexpr uint64_t kMaxPixels = 64'000'000;           // 256 MB once decoded
constexpr uint64_t kMaxSide = 65'500;                 // pixels, libjpeg's own limit
constexpr size_t kMaxImageBytes = size_t{512} << 20;  // of a file, which is read into memory whole

enum class ImageFormat { kJpeg, kPng, kOther };

// By the first bytes.
ImageFormat FormatOf(const std::vector<uint8_t>& file);

// The frame, tables and scans of a JPEG, with its JFIF and Adobe marks in their plainest form. What stands before the
// first scan is checked as far as its structure goes. Throws ImageError.
std::vector<uint8_t> BareJpeg(const std::vector<uint8_t>& file);

// A PNG of IHDR, a full palette, and the image data, uncompressed. Chunks that may be ignored are passed over unread;
// the others must be whole, known and their CRC right, and so must the compressed stream. Throws ImageError.
std::vector<uint8_t> BarePng(const std::vector<uint8_t>& file);

}  // namespace ddrnet

#endif  // DDRNET_IMAGE_FILES_H_
