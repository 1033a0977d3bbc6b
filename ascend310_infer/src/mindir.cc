#include "mindir.h"

#include <cstdint>
#include <fstream>

#include "error.h"

namespace ddrnet {
namespace {

// Fields of ModelProto that tell a MindIR file: its graph and its format version.
constexpr uint64_t kGraphField = 7, kLastField = 14, kVersionField = 13;

// The wire format of a protocol buffer: a key (field number and kind) before each value.
class Wire {
 public:
  explicit Wire(std::istream& file) : file_(file) {}

  bool Varint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const int byte = file_.get();
      if (byte < 0) return false;
      *value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

 private:
  std::istream& file_;
};

}  // namespace

int MindirVersion(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
  if (size < 0 || !file.seekg(0)) throw UserError(path + ": cannot be read; write it with export.py");
  const UserError damaged(path + ": not a MindIR file, or a damaged one; write it again with export.py");
  Wire wire(file);
  uint64_t version = 0;
  bool has_graph = false;
  while (static_cast<std::streamoff>(file.tellg()) < size) {
    uint64_t key = 0, value = 0;
    if (!wire.Varint(&key) || key >> 3 == 0 || key >> 3 > kLastField) throw damaged;
    const uint64_t field = key >> 3, kind = key & 7;
    if (kind != 0 && kind != 2) throw damaged;  // ModelProto has whole numbers and messages only
    if (!wire.Varint(&value)) throw damaged;
    if (kind == 2) {
      const std::streamoff here = file.tellg();
      if (value > static_cast<uint64_t>(size - here)) throw damaged;
      has_graph = has_graph || (field == kGraphField && value > 0);
      file.seekg(here + static_cast<std::streamoff>(value));
    } else if (field == kVersionField) {
      version = value;
    }
  }
  if (!has_graph || version > 1000) throw damaged;
  return static_cast<int>(version);
}

}  // namespace ddrnet
