#include "sha256.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace ddrnet {
namespace {

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

uint32_t Turn(uint32_t value, int bits) { return value >> bits | value << (32 - bits); }

}  // namespace

void Sha256::Block(const uint8_t* data) {
  uint32_t words[64];
  for (int i = 0; i < 16; ++i) {
    words[i] = uint32_t{data[4 * i]} << 24 | uint32_t{data[4 * i + 1]} << 16 | uint32_t{data[4 * i + 2]} << 8 |
               data[4 * i + 3];
  }
  for (int i = 16; i < 64; ++i) {
    const uint32_t a = words[i - 15], b = words[i - 2];
    words[i] =
        words[i - 16] + (Turn(a, 7) ^ Turn(a, 18) ^ a >> 3) + words[i - 7] + (Turn(b, 17) ^ Turn(b, 19) ^ b >> 10);
  }
  auto [a, b, c, d, e, f, g, h] = state_;
  for (int i = 0; i < 64; ++i) {
    const uint32_t first = h + (Turn(e, 6) ^ Turn(e, 11) ^ Turn(e, 25)) + ((e & f) ^ (~e & g)) + kRound[i] + words[i];
    const uint32_t second = (Turn(a, 2) ^ Turn(a, 13) ^ Turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
  }
  const uint32_t added[] = {a, b, c, d, e, f, g, h};
  for (size_t i = 0; i < state_.size(); ++i) state_[i] += added[i];
}

void Sha256::Update(const uint8_t* data, size_t size) {
  size_ += size;
  while (size > 0) {
    if (held_ == 0 && size >= rest_.size()) {
      Block(data);
      data += rest_.size();
      size -= rest_.size();
      continue;
    }
    const size_t taken = std::min(size, rest_.size() - held_);
    std::memcpy(rest_.data() + held_, data, taken);
    held_ += taken;
    data += taken;
    size -= taken;
    if (held_ == rest_.size()) {
      Block(rest_.data());
      held_ = 0;
    }
  }
}

std::string Sha256::Finish() {
  const uint64_t bits = size_ * 8;
  static constexpr uint8_t kEnd[64] = {0x80};
  Update(kEnd, held_ < 56 ? 56 - held_ : 120 - held_);
  uint8_t length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
  Update(length, sizeof(length));
  std::string text;
  for (const uint32_t word : state_) {
    char part[9];
    std::snprintf(part, sizeof(part), "%08x", word);
    text += part;
  }
  return text;
}

}  // namespace ddrnet
