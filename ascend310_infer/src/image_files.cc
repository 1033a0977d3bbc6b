#include "image_files.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>

#include "error.h"

namespace ddrnet {
namespace {

using Bytes = std::vector<uint8_t>;

constexpr char kCut[] = "the file is cut off";
constexpr uint8_t kJpegMark[] = {0xFF, 0xD8, 0xFF};
constexpr uint8_t kPngMark[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
constexpr uint8_t kJfif[] = {0xFF, 0xE0, 0, 16, 'J', 'F', 'I', 'F', 0, 1, 1, 0, 0, 1, 0, 1, 0, 0};
constexpr uint8_t kAdobe[] = {0xFF, 0xEE, 0, 14, 'A', 'd', 'o', 'b', 'e', 0, 100, 0, 0, 0, 0};
constexpr int kPalette = 3;
constexpr int kMostScans = 100;  // encoders write a dozen; each takes as long as its pixels do, and may be a few bytes
constexpr size_t kPiece = size_t{1} << 20;  // bytes inflated at once

uint32_t ReadBigEndian(const uint8_t* data, int bytes) {
  uint32_t value = 0;
  for (int i = 0; i < bytes; ++i) value = value << 8 | data[i];
  return value;
}

template <size_t kSize>
void Append(const uint8_t (&bytes)[kSize], Bytes* target) {
  target->insert(target->end(), bytes, bytes + kSize);
}

template <size_t kSize>
bool Begins(const uint8_t* data, size_t size, const uint8_t (&mark)[kSize]) {
  return size >= kSize && std::memcmp(data, mark, kSize) == 0;
}

void CheckSize(uint64_t width, uint64_t height) {
  if (width == 0 || height == 0) throw ImageError("it has no pixels");
  if (width > kMaxSide || height > kMaxSide || width * height > kMaxPixels) {
    throw ImageError("it has " + std::to_string(width) + " x " + std::to_string(height) + " pixels; at most " +
                     std::to_string(kMaxPixels / 1'000'000) + " million and " + std::to_string(kMaxSide) +
                     " a side are read");
  }
}

// Bits, height, width, components, and three bytes for each of them.
void CheckFrame(const uint8_t* body, size_t size) {
  if (size < 6 || size != 6 + 3 * static_cast<size_t>(body[5])) throw ImageError("its JPEG frame header is damaged");
  const int components = body[5];
  if (body[0] != 8) throw ImageError("a JPEG of " + std::to_string(body[0]) + " bits, which is not read; 8 are");
  if (components != 1 && components != 3 && components != 4) {
    throw ImageError("a JPEG of " + std::to_string(components) + " components, which is not read; 1, 3 and 4 are");
  }
  CheckSize(ReadBigEndian(body + 3, 2), ReadBigEndian(body + 1, 2));
}

enum class Segment { kEmpty, kEnd, kFrame, kOtherFrame, kTable, kScan, kJfif, kAdobe, kSkipped, kUnknown };

Segment KindOf(int marker) {
  if (marker == 0 || marker == 0x01 || (marker >= 0xD0 && marker <= 0xD7)) return Segment::kEmpty;
  if (marker == 0xD8 || marker == 0xD9) return Segment::kEnd;
  if (marker == 0xC4 || marker == 0xCC || marker == 0xDB || marker == 0xDD) return Segment::kTable;
  if (marker <= 0xC2 && marker >= 0xC0) return Segment::kFrame;
  if (marker == 0xC9 || marker == 0xCA) return Segment::kFrame;  // arithmetically coded
  if (marker >= 0xC3 && marker <= 0xCF && marker != 0xC8) return Segment::kOtherFrame;
  if (marker == 0xDA) return Segment::kScan;
  if (marker == 0xE0) return Segment::kJfif;
  if (marker == 0xEE) return Segment::kAdobe;
  if ((marker >= 0xE0 && marker <= 0xEF) || marker == 0xFE || marker == 0xDC) return Segment::kSkipped;
  return Segment::kUnknown;
}

// Refuses an image of endless scans, the first at `at`, or a progressive one that leaves low frequencies of a component
// unknown: libjpeg would smooth what is missing, each version in its own way.
void CheckScans(const Bytes& file, size_t at, const uint8_t* frame, bool progressive) {
  std::map<int, std::array<int, 64>> known;  // by component, of each coefficient in zigzag order the bits still to come
  std::array<int, 64> nothing;
  nothing.fill(-1);
  for (int i = 0; i < frame[5]; ++i) known[frame[6 + 3 * i]] = nothing;
  bool complete = known.size() == frame[5];
  int scans = 0;
  while (at + 1 < file.size()) {
    const int marker = file[at + 1];
    if (file[at] != 0xFF || marker == 0 || marker == 1 || marker == 0xFF || (marker >= 0xD0 && marker <= 0xD7)) {
      ++at;
      continue;
    }
    if (marker == 0xD9 || file.size() - at < 4) break;
    const size_t length = ReadBigEndian(file.data() + at + 2, 2);
    if (marker == 0xDA && ++scans > kMostScans) {
      throw ImageError("it has more than " + std::to_string(kMostScans) + " scans");
    }
    if (marker == 0xDA && length > 2 && file.size() - at - 2 >= length) {
      const uint8_t* body = file.data() + at + 4;
      const size_t size = length - 2;
      if (size == 4 + 2 * static_cast<size_t>(body[0])) {
        for (int i = 0; i < body[0]; ++i) {
          const auto found = known.emplace(body[1 + 2 * i], nothing);
          complete = complete && !found.second;
          for (int k = body[size - 3]; k <= std::min<int>(body[size - 2], 63); ++k) {
            found.first->second[static_cast<size_t>(k)] = body[size - 1] & 15;
          }
        }
      }
    }
    at += 2 + std::max<size_t>(length, 2);
  }
  for (const auto& component : known) {
    for (size_t k = 1; k < 10; ++k) complete = complete && component.second[k] == 0;
  }
  if (progressive && !complete) throw ImageError("its progressive scans are not all there");
}

struct Chunk {
  const uint8_t* name;
  const uint8_t* body;
  size_t size;

  bool Is(const char* other) const { return std::memcmp(name, other, 4) == 0; }
  bool IsAncillary() const { return (name[0] & 0x20) != 0; }
  uint32_t Checksum() const { return static_cast<uint32_t>(crc32(crc32(0, name, 4), body, static_cast<uInt>(size))); }
  std::string Name() const {
    if (std::all_of(name, name + 4, [](uint8_t c) { return c < 0x80 && std::isalnum(c) != 0; })) {
      return std::string(name, name + 4);
    }
    char text[9];
    std::snprintf(text, sizeof(text), "%08x", ReadBigEndian(name, 4));
    return text;
  }
};

void AppendBigEndian(uint32_t value, Bytes* target) {
  for (int shift = 24; shift >= 0; shift -= 8) target->push_back(static_cast<uint8_t>(value >> shift));
}

// Appends a whole chunk; its body is written by `write`.
template <typename Write>
void AppendChunk(const char* name, Bytes* target, const Write& write) {
  const size_t start = target->size();
  AppendBigEndian(0, target);
  target->insert(target->end(), name, name + 4);
  write();
  const size_t size = target->size() - start - 8;
  for (int i = 0; i < 4; ++i) (*target)[start + i] = static_cast<uint8_t>(size >> (24 - 8 * i));
  AppendBigEndian(static_cast<uint32_t>(crc32(0, target->data() + start + 4, static_cast<uInt>(size + 4))), target);
}

void CheckHeader(const Chunk& chunk) {
  if (chunk.size != 13) throw ImageError("its PNG header is damaged");
  const int depth = chunk.body[8], color = chunk.body[9];
  const bool any = depth == 1 || depth == 2 || depth == 4 || depth == 8 || depth == 16;
  const bool known = (color == 0 && any) || (color == kPalette && any && depth < 16) ||
                     ((color == 2 || color == 4 || color == 6) && (depth == 8 || depth == 16));
  if (!known || chunk.body[10] != 0 || chunk.body[11] != 0 || chunk.body[12] > 1) {
    throw ImageError("its PNG header names a kind that there is not");
  }
  CheckSize(ReadBigEndian(chunk.body, 4), ReadBigEndian(chunk.body + 4, 4));
}

// How many bytes the image data inflate to: each row of each pass has a filter byte.
size_t RawSize(const uint8_t* header) {
  static constexpr int kAdam7[7][4] = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4},
                                       {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};
  static constexpr int kWhole[1][4] = {{0, 0, 1, 1}};
  static constexpr int kChannels[] = {1, 0, 3, 1, 2, 0, 4};
  const int64_t width = ReadBigEndian(header, 4), height = ReadBigEndian(header + 4, 4);
  const int64_t bits = header[8] * kChannels[header[9]];
  const bool interlaced = header[12] == 1;
  size_t total = 0;
  for (int i = 0; i < (interlaced ? 7 : 1); ++i) {
    const int* pass = interlaced ? kAdam7[i] : kWhole[i];
    const int64_t columns = (width - pass[0] + pass[2] - 1) / pass[2],
                  rows = (height - pass[1] + pass[3] - 1) / pass[3];
    if (columns > 0 && rows > 0) total += static_cast<size_t>(rows * (1 + (columns * bits + 7) / 8));
  }
  return total;
}

// A zlib stream that must be whole, wrapped anew without compression. Memory is bounded by `left`, whatever the stream
// would inflate to.
class Restorer {
 public:
  Restorer(size_t size, Bytes* target) : left_(size), target_(target) {
    if (inflateInit(&inflater_) != Z_OK) throw std::bad_alloc();
    if (deflateInit(&wrapper_, 0) != Z_OK) {
      inflateEnd(&inflater_);
      throw std::bad_alloc();
    }
    target->reserve(target->size() + deflateBound(&wrapper_, static_cast<uLong>(size)) + 64);
  }
  ~Restorer() {
    inflateEnd(&inflater_);
    deflateEnd(&wrapper_);
  }
  Restorer(const Restorer&) = delete;
  Restorer& operator=(const Restorer&) = delete;

  void Feed(const uint8_t* data, size_t size) {
    inflater_.next_in = const_cast<Bytef*>(data);
    inflater_.avail_in = static_cast<uInt>(size);
    while (!ended_) {
      inflater_.next_out = raw_.data();
      inflater_.avail_out = static_cast<uInt>(raw_.size());
      const int code = inflate(&inflater_, Z_NO_FLUSH);
      if (code == Z_MEM_ERROR) throw std::bad_alloc();
      if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR) {
        throw ImageError("its PNG image data are damaged");
      }
      ended_ = code == Z_STREAM_END;
      const size_t got = raw_.size() - inflater_.avail_out, wanted = std::min(got, left_);
      Wrap(raw_.data(), wanted, Z_NO_FLUSH);
      left_ -= wanted;
      if (inflater_.avail_in == 0 && inflater_.avail_out > 0) return;
    }
  }

  void Finish() {
    if (!ended_ || left_ > 0) throw ImageError("its PNG image data end too early");
    Wrap(nullptr, 0, Z_FINISH);
  }

 private:
  void Wrap(uint8_t* data, size_t size, int flush) {
    wrapper_.next_in = data;
    wrapper_.avail_in = static_cast<uInt>(size);
    uint8_t stored[16384];
    do {
      wrapper_.next_out = stored;
      wrapper_.avail_out = sizeof(stored);
      deflate(&wrapper_, flush);
      target_->insert(target_->end(), stored, stored + sizeof(stored) - wrapper_.avail_out);
    } while (wrapper_.avail_out == 0);
  }

  z_stream inflater_{}, wrapper_{};
  Bytes raw_ = Bytes(kPiece);
  size_t left_;  // bytes of the image that are still to come
  bool ended_ = false;
  Bytes* target_;
};

}  // namespace

ImageFormat FormatOf(const Bytes& file) {
  if (Begins(file.data(), file.size(), kJpegMark)) return ImageFormat::kJpeg;
  return Begins(file.data(), file.size(), kPngMark) ? ImageFormat::kPng : ImageFormat::kOther;
}

Bytes BareJpeg(const Bytes& file) {
  Bytes bare = {0xFF, 0xD8};
  bare.reserve(file.size() + 64);
  const uint8_t* frame = nullptr;
  bool progressive = false;
  size_t at = 2;
  const auto more = [&file, &at](size_t count) {
    if (file.size() - at < count) throw ImageError(kCut);
  };
  while (true) {
    at =
        static_cast<size_t>(std::find(file.begin() + static_cast<std::ptrdiff_t>(at), file.end(), 0xFF) - file.begin());
    while (at < file.size() && file[at] == 0xFF) ++at;  // a marker may be padded
    more(1);
    const int marker = file[at++];
    const Segment kind = KindOf(marker);
    if (kind == Segment::kEmpty) continue;  // stuffing and restarts, which mean nothing here
    if (kind == Segment::kEnd) throw ImageError("it holds no scan");
    more(2);
    const size_t length = ReadBigEndian(file.data() + at, 2);
    if (length < 2) throw ImageError("a JPEG segment has no length");
    more(length);
    const uint8_t* body = file.data() + at + 2;
    const size_t size = length - 2;
    switch (kind) {
      case Segment::kScan:
        if (frame == nullptr) throw ImageError("it has a scan before its frame");
        if (progressive || size == 0 || body[0] != frame[5]) {  // or what may go on with other components
          CheckScans(file, at - 2, frame, progressive);
        }
        bare.insert(bare.end(), {0xFF, 0xDA});
        bare.insert(bare.end(), file.begin() + static_cast<std::ptrdiff_t>(at), file.end());
        return bare;
      case Segment::kFrame:
        if (frame != nullptr) throw ImageError("it has two frames");
        CheckFrame(body, size);
        frame = body;
        progressive = marker == 0xC2 || marker == 0xCA;
        [[fallthrough]];
      case Segment::kTable:
        bare.insert(bare.end(), {0xFF, static_cast<uint8_t>(marker)});
        bare.insert(bare.end(), body - 2, body + size);
        break;
      case Segment::kJfif:
        if (size >= 14 && std::memcmp(body, "JFIF", 5) == 0) Append(kJfif, &bare);
        break;
      case Segment::kAdobe:
        if (size >= 12 && std::memcmp(body, "Adobe", 5) == 0) {
          Append(kAdobe, &bare);
          bare.push_back(body[11]);  // the colour transform
        }
        break;
      case Segment::kOtherFrame: throw ImageError("a lossless or hierarchical JPEG, which is not read");
      case Segment::kSkipped: break;
      default: {
        char text[64];
        std::snprintf(text, sizeof(text), "it has an unknown JPEG marker 0x%02x", static_cast<unsigned>(marker));
        throw ImageError(text);
      }
    }
    at += length;
  }
}

Bytes BarePng(const Bytes& file) {
  Bytes bare;
  Append(kPngMark, &bare);
  const uint8_t* header = nullptr;
  Chunk palette{};
  std::vector<Chunk> pieces;
  for (size_t at = sizeof(kPngMark); at < file.size();) {
    if (file.size() - at < 8) throw ImageError(kCut);
    const Chunk chunk{file.data() + at + 4, file.data() + at + 8, ReadBigEndian(file.data() + at, 4)};
    if (file.size() - at - 8 < chunk.size + 4) throw ImageError(kCut);
    at += chunk.size + 12;
    if (!pieces.empty() && !chunk.Is("IDAT")) break;
    if (chunk.IsAncillary()) {
      if (header == nullptr) throw ImageError("its first PNG chunk is not IHDR");
      continue;
    }
    if (ReadBigEndian(chunk.body + chunk.size, 4) != chunk.Checksum()) {
      throw ImageError("its PNG chunk " + chunk.Name() + " is damaged: the checksum is wrong");
    }
    if (chunk.Is("IHDR") && header != nullptr) throw ImageError("it has two PNG chunks IHDR");
    if (!chunk.Is("IHDR") && header == nullptr) throw ImageError("its first PNG chunk is not IHDR");
    if (chunk.Is("IHDR")) {
      CheckHeader(chunk);
      header = chunk.body;
    } else if (chunk.Is("PLTE")) {
      if (header[9] != kPalette) continue;  // a suggestion where the image has no palette
      if (palette.body != nullptr || chunk.size == 0 || chunk.size > 768 || chunk.size % 3 != 0) {
        throw ImageError("its PNG palette is damaged");
      }
      palette = chunk;
    } else if (chunk.Is("IDAT")) {
      if (header[9] == kPalette && palette.body == nullptr) {
        throw ImageError("a PNG with a palette, but its chunk PLTE is missing");
      }
      pieces.push_back(chunk);
    } else {
      throw ImageError(chunk.Is("IEND") ? "it holds no image data" : "an unknown PNG chunk " + chunk.Name());
    }
  }
  if (pieces.empty()) throw ImageError(kCut);
  AppendChunk("IHDR", &bare, [&] { bare.insert(bare.end(), header, header + 13); });
  if (palette.body != nullptr) {
    const size_t full = size_t{3} << header[8], given = std::min(full, palette.size);
    AppendChunk("PLTE", &bare, [&] {
      bare.insert(bare.end(), palette.body, palette.body + given);
      bare.insert(bare.end(), full - given, 0);  // colours beyond the palette are black
    });
  }
  AppendChunk("IDAT", &bare, [&] {
    const auto restorer = std::make_unique<Restorer>(RawSize(header), &bare);
    for (const Chunk& piece : pieces) restorer->Feed(piece.body, piece.size);
    restorer->Finish();
  });
  AppendChunk("IEND", &bare, [] {});
  return bare;
}

}  // namespace ddrnet
