// Reading a whole file.
#ifndef DDRNET_FILES_H_
#define DDRNET_FILES_H_

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

namespace ddrnet {

// Reads a file into `bytes`, whose memory is reused. False where it cannot be read.
inline bool ReadFile(const std::string &path, std::vector<uint8_t> *bytes) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
  if (size < 0 || !file.seekg(0)) return false;
  bytes->resize(static_cast<size_t>(size));
  return size == 0 || file.read(reinterpret_cast<char *>(bytes->data()), size).good();
}

}  // namespace ddrnet

#endif  // DDRNET_FILES_H_
