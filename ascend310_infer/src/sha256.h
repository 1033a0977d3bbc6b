// SHA-256 (FIPS 180-4), to tell a damaged file.
#ifndef DDRNET_SHA256_H_
#define DDRNET_SHA256_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace ddrnet {

class Sha256 {
 public:
  void Update(const uint8_t* data, size_t size);
  // In hexadecimal. Nothing may be added afterwards.
  std::string Finish();

 private:
  void Block(const uint8_t* data);

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> rest_{};  // of an incomplete block
  size_t held_ = 0;
  uint64_t size_ = 0;
};

}  // namespace ddrnet

#endif  // DDRNET_SHA256_H_
