// A reader for JSON texts (RFC 8259), as small as the file beside the MindIR needs.
#ifndef DDRNET_JSON_H_
#define DDRNET_JSON_H_

#include <map>
#include <string>
#include <vector>

namespace ddrnet {

struct Json {
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  bool boolean = false;
  double number = 0;
  std::string text;  // UTF-8
  std::vector<Json> items;
  std::map<std::string, Json> members;
};

// Throws UserError with the position of the first mistake, in bytes.
Json ParseJson(const std::string &text);

}  // namespace ddrnet

#endif  // DDRNET_JSON_H_
