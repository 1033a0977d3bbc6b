// The two ways in which things go wrong through no fault of the program, and how they are told.
#ifndef DDRNET_ERROR_H_
#define DDRNET_ERROR_H_

#include <stdexcept>
#include <string>

namespace ddrnet {

// Bad input, or a machine that cannot do what is asked: the run ends with one line and exit code 2.
class UserError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// One image cannot be decoded: the run goes on and ends with exit code 3.
class ImageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A text for a message: control characters, which names of files may hold, become escapes, so that it is one line.
inline std::string Printable(const std::string& text) {
  static const char kDigits[] = "0123456789abcdef";
  std::string shown;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte == '\n') {
      shown += "\\n";
    } else if (byte < 0x20 || byte == 0x7F) {
      shown += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    } else {
      shown += c;
    }
  }
  return shown;
}

}  // namespace ddrnet

#endif  // DDRNET_ERROR_H_
