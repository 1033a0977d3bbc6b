#include "spec.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "error.h"
#include "files.h"
#include "sha256.h"

namespace ddrnet {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxBytes = size_t{64} << 20;
constexpr int kMaxDepth = 20;

// Parses strictly: RFC 8259, no key twice, and no deeper than any description is.
Json ParseStrictly(const std::string& path, const std::string& text) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth) throw UserError(path + ": not valid JSON: nested too deeply");
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
      throw UserError(path + ": " + parsed.get<std::string>() + " stands there twice");
    }
    return true;
  };
  try {
    return Json::parse(text, check);
  } catch (const Json::parse_error& error) {
    throw UserError(path + ": not valid JSON at byte " + std::to_string(error.byte > 0 ? error.byte - 1 : 0) +
                    "; export the network again with export.py");
  } catch (const Json::exception&) {  // a number that no double holds
    throw UserError(path + ": not valid JSON; export the network again with export.py");
  }
}

// The members of one JSON object, with the file's name for the errors.
class Reader {
 public:
  Reader(const std::string& path, const Json& object) : path_(path), object_(object) {}

  [[noreturn]] void Fail(const std::string& key, const std::string& what) const {
    throw UserError(path_ + ": " + key + " " + what);
  }

  const Json& Get(const std::string& key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) Fail(key, "is missing; export the network again with export.py");
    return *found;
  }

  double Number(const std::string& key, double low, double high) const {
    const Json& json = Get(key);
    if (!json.is_number()) Fail(key, "must be a number");
    const auto value = json.get<double>();
    if (!(value > low && value <= high)) {
      std::ostringstream limits;
      limits << "must be above " << low << " and at most " << high << ", not " << value;
      Fail(key, limits.str());
    }
    return value;
  }

  std::string Text(const std::string& key) const {
    const Json& json = Get(key);
    if (!json.is_string()) Fail(key, "must be a text");
    return json.get<std::string>();
  }

  std::string OptionalText(const std::string& key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? std::string() : Text(key);
  }

  std::string OneOf(const std::string& key, const std::vector<std::string>& values) const {
    const std::string value = Text(key);
    std::string known;
    for (const std::string& candidate : values) {
      if (value == candidate) return value;
      known += (known.empty() ? "" : " or ") + candidate;
    }
    Fail(key, "must be " + known + ", not " + value.substr(0, 40));
  }

  void ThreeNumbers(const std::string& key, bool positive, double* numbers) const {
    const Json& array = Get(key);
    if (!array.is_array() || array.size() != 3) Fail(key, "must be three numbers");
    for (size_t i = 0; i < 3; ++i) {
      if (!array[i].is_number()) Fail(key, "must be three numbers");
      numbers[i] = array[i].get<double>();
      if (positive && !(numbers[i] > 0)) Fail(key, "must be positive");
    }
  }

  std::vector<int64_t> Shape(const std::string& key, size_t rank) const {
    const Json& json = Get(key);
    if (!json.is_object()) Fail(key, "must be an object");
    const Reader tensor(path_, json);
    tensor.OneOf("dtype", {"float32"});
    const Json& array = tensor.Get("shape");
    if (!array.is_array() || array.size() != rank) {
      Fail(key + ".shape", "must have " + std::to_string(rank) + " sizes");
    }
    std::vector<int64_t> shape;
    for (const Json& item : array) {
      const double size = item.is_number() ? item.get<double>() : 0;
      if (!(size >= 1 && size <= 1e9) || size != std::floor(size)) {
        Fail(key + ".shape", "must be a list of positive sizes");
      }
      shape.push_back(static_cast<int64_t>(size));
    }
    return shape;
  }

 private:
  const std::string& path_;
  const Json& object_;
};

std::string Ending(const std::string& path) {
  const size_t slash = path.rfind('/'), dot = path.rfind('.');
  const bool has_ending = dot != std::string::npos && (slash == std::string::npos || dot > slash + 1) && dot > 0;
  return has_ending ? path.substr(dot) : std::string();
}

}  // namespace

std::string SpecPath(const std::string& mindir_path) {
  return mindir_path.substr(0, mindir_path.size() - Ending(mindir_path).size()) + ".json";
}

Spec ReadSpec(const std::string& path) {
  std::vector<uint8_t> bytes;
  const std::string problem = ReadFile(path, kMaxBytes, &bytes);
  if (!problem.empty()) {
    throw UserError(path + ": " + problem + "; export.py writes it beside the MindIR, and both belong together");
  }
  return ParseSpec(path, std::string(bytes.begin(), bytes.end()));
}

Spec ParseSpec(const std::string& path, const std::string& text) {
  const Json json = ParseStrictly(path, text);
  if (!json.is_object()) throw UserError(path + ": must be a JSON object, as export.py writes it");
  const Reader reader(path, json);
  Spec spec;
  const double size = reader.Number("image_size", 0, 16384);
  if (size != std::floor(size)) reader.Fail("image_size", "must be a whole number");
  spec.image_size = static_cast<int>(size);
  spec.squash = reader.OneOf("crop_mode", {"squash", "center"}) == "squash";
  spec.crop_pct = reader.Number("crop_pct", 0, 1);
  if (spec.image_size / spec.crop_pct > 65536) reader.Fail("crop_pct", "is too small");
  spec.filter = FilterByName(reader.OneOf("interpolation", {"bilinear", "bicubic", "lanczos"}));
  reader.ThreeNumbers("mean", false, spec.mean);
  reader.ThreeNumbers("std", true, spec.std);
  reader.OneOf("color", {"RGB"});
  spec.input_shape = reader.Shape("input", 4);
  spec.output_shape = reader.Shape("output", 2);
  if (spec.input_shape[1] != 3 || spec.input_shape[2] != spec.image_size || spec.input_shape[3] != spec.image_size) {
    reader.Fail("input.shape", "must be N, 3, image_size, image_size");
  }
  if (spec.output_shape[0] != spec.input_shape[0]) reader.Fail("output.shape", "must begin with the input's N");
  spec.file = reader.OptionalText("file");
  spec.sha256 = reader.OptionalText("sha256");
  return spec;
}

void CheckSum(const std::string& mindir_path, const Spec& spec) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(mindir_path, ignored)) {  // a pipe would be waited for
    throw UserError(mindir_path + ": cannot be read; write it with export.py");
  }
  if (spec.sha256.empty() || Ending(spec.file) != Ending(mindir_path)) return;
  std::ifstream file(mindir_path, std::ios::binary);
  if (!file) throw UserError(mindir_path + ": cannot be read; write it with export.py");
  Sha256 digest;
  std::vector<char> piece(size_t{1} << 20);
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())), file.gcount() > 0) {
    digest.Update(reinterpret_cast<const uint8_t*>(piece.data()), static_cast<size_t>(file.gcount()));
  }
  if (digest.Finish() != spec.sha256) {
    throw UserError(mindir_path + ": is damaged, or not the file that " + SpecPath(mindir_path) +
                    " describes (its SHA-256 is another); copy both again, or export again with export.py");
  }
}

}  // namespace ddrnet
