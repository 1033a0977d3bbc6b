#include "spec.h"

#include <cmath>
#include <fstream>
#include <sstream>

#include "error.h"
#include "json.h"

namespace ddrnet {
namespace {

// The members of one JSON object, with the file's name for the errors.
class Reader {
 public:
  Reader(const std::string &path, const Json &object) : path_(path), object_(object) {}

  [[noreturn]] void Fail(const std::string &key, const std::string &what) const {
    throw UserError(path_ + ": " + key + " " + what);
  }

  const Json &Get(const std::string &key, Json::Kind kind, const std::string &what) const {
    const auto found = object_.members.find(key);
    if (found == object_.members.end()) Fail(key, "is missing; export the network again with export.py");
    if (found->second.kind != kind) Fail(key, "must be " + what);
    return found->second;
  }

  double Number(const std::string &key, double low, double high) const {
    const double value = Get(key, Json::Kind::kNumber, "a number").number;
    if (!(value > low && value <= high)) {
      std::ostringstream limits;
      limits << "must be above " << low << " and at most " << high << ", not " << value;
      Fail(key, limits.str());
    }
    return value;
  }

  std::string OneOf(const std::string &key, const std::vector<std::string> &values) const {
    const std::string &value = Get(key, Json::Kind::kString, "a text").text;
    std::string known;
    for (const std::string &candidate : values) {
      if (value == candidate) return value;
      known += (known.empty() ? "" : " or ") + candidate;
    }
    Fail(key, "must be " + known + ", not " + value);
  }

  void ThreeNumbers(const std::string &key, bool positive, double *numbers) const {
    const Json &array = Get(key, Json::Kind::kArray, "three numbers");
    if (array.items.size() != 3) Fail(key, "must be three numbers");
    for (int i = 0; i < 3; ++i) {
      if (array.items[i].kind != Json::Kind::kNumber) Fail(key, "must be three numbers");
      numbers[i] = array.items[i].number;
      if (positive && !(numbers[i] > 0)) Fail(key, "must be positive");
    }
  }

  std::vector<int64_t> Shape(const std::string &key, size_t rank) const {
    const Reader tensor(path_, Get(key, Json::Kind::kObject, "an object"));
    if (tensor.OneOf("dtype", {"float32"}).empty()) Fail(key, "has no dtype");
    const Json &array = tensor.Get("shape", Json::Kind::kArray, "a list of sizes");
    std::vector<int64_t> shape;
    for (const Json &item : array.items) {
      if (item.kind != Json::Kind::kNumber || item.number < 1 || item.number > 1e9 ||
          item.number != std::floor(item.number)) {
        Fail(key + ".shape", "must be a list of positive sizes");
      }
      shape.push_back(static_cast<int64_t>(item.number));
    }
    if (shape.size() != rank) Fail(key + ".shape", "must have " + std::to_string(rank) + " sizes");
    return shape;
  }

 private:
  const std::string &path_;
  const Json &object_;
};

}  // namespace

std::string SpecPath(const std::string &mindir_path) {
  const size_t slash = mindir_path.rfind('/');
  const size_t dot = mindir_path.rfind('.');
  const bool has_ending = dot != std::string::npos && (slash == std::string::npos || dot > slash + 1) && dot > 0;
  return (has_ending ? mindir_path.substr(0, dot) : mindir_path) + ".json";
}

Spec ReadSpec(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) {
    throw UserError(path + ": cannot be read; export.py writes it beside the MindIR, and both belong together");
  }
  Json json;
  try {
    json = ParseJson(text.str());
  } catch (const UserError &error) {
    throw UserError(path + ": " + error.what());
  }
  if (json.kind != Json::Kind::kObject) throw UserError(path + ": must be a JSON object, as export.py writes it");

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
  return spec;
}

}  // namespace ddrnet
