// Reading a whole file.
#ifndef DDRNET_FILES_H_
#define DDRNET_FILES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ddrnet {

// Reads a regular file of at most `limit` bytes into `bytes`, whose memory is reused. Returns why it cannot be read;
// empty: it was. A pipe, which might never end, or a device is not waited for.
std::string ReadFile(const std::string& path, size_t limit, std::vector<uint8_t>* bytes);

}  // namespace ddrnet

#endif  // DDRNET_FILES_H_
