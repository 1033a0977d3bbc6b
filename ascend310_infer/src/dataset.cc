#include "dataset.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <map>

#include "error.h"
#include "image_files.h"
#include "sha256.h"

namespace ddrnet {
namespace {

namespace fs = std::filesystem;

std::string EndingOf(const fs::path& path) {
  std::string ending = path.extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
  return ending;
}

template <size_t kCount>
bool IsAmong(const std::string& ending, const char* const (&endings)[kCount]) {
  return std::find(std::begin(endings), std::end(endings), ending) != std::end(endings);
}

bool HasOwnEnding(const fs::path& path) {
  static const char* const kEndings[] = {".jfif", ".jpe", ".jpeg", ".jpg", ".png"};
  return IsAmong(EndingOf(path), kEndings);
}

// Whether a file is a JPEG or a PNG by another name.
bool BeginsAsOwn(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<uint8_t> start(8);
  file.read(reinterpret_cast<char*>(start.data()), static_cast<std::streamsize>(start.size()));
  start.resize(static_cast<size_t>(file.gcount()));
  return FormatOf(start) != ImageFormat::kOther;
}

// Those that eval.py takes for images, so that both see the same files.
bool LooksLikeImage(const fs::path& path) {
  static const char* const kEndings[] = {".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".tif", ".tiff", ".webp"};
  return HasOwnEnding(path) || IsAmong(EndingOf(path), kEndings);
}

std::vector<fs::path> Sorted(const fs::path& folder, bool folders) {
  std::vector<fs::path> paths;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename().string()[0] == '.') continue;
    std::error_code error;  // a loop of links, or a closed folder behind one: neither file nor folder
    if (folders ? entry.is_directory(error) : LooksLikeImage(entry.path()) && entry.is_regular_file(error)) {
      paths.push_back(entry.path());
    }
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

// A name too long for a file system is replaced by its SHA-256.
std::string Fitting(const std::string& name, const std::string& ending) {
  constexpr size_t kLongest = 255;
  if (name.size() + ending.size() <= kLongest) return name + ending;
  Sha256 digest;
  digest.Update(reinterpret_cast<const uint8_t*>(name.data()), name.size());
  return digest.Finish() + ending;
}

std::string ResultName(const fs::path& path, const fs::path& file) {
  return Fitting(path.parent_path().filename().string() + "__" + file.string(), "_0.bin");
}

// Gives images of one stem results of their whole names.
void NameResults(std::vector<Item>* items) {
  std::map<std::string, int> shares;
  for (const Item& item : *items) ++shares[item.result_name];
  std::map<std::string, std::string> owners;
  for (Item& item : *items) {
    const fs::path path(item.path);
    if (shares[item.result_name] > 1) item.result_name = ResultName(path, path.filename());
    const auto owner = owners.emplace(item.result_name, item.path);
    if (!owner.second) {
      throw UserError(item.path + " and " + owner.first->second + " would share the result file " + item.result_name +
                      "; rename one");
    }
  }
}

}  // namespace

std::vector<Item> ListImages(const std::string& folder) {
  std::error_code ignored;
  if (!fs::is_directory(fs::status(folder, ignored))) throw UserError("--dataset_path " + folder + ": no such folder");
  std::vector<Item> items;
  try {
    const std::vector<fs::path> classes = Sorted(folder, true);
    if (classes.empty()) {
      throw UserError("--dataset_path " + folder + ": has no class folders; each class's images lie in one of its own");
    }
    for (const fs::path& name : classes) {
      for (const fs::path& path : Sorted(name, false)) {
        items.push_back({path.string(), (name.filename() / Fitting(path.filename().string(), ".png")).string(),
                         ResultName(path, path.stem())});
      }
    }
  } catch (const fs::filesystem_error& error) {
    throw UserError(error.path1().string() + ": cannot be listed (" + error.code().message() + ")");
  }
  if (items.empty()) throw UserError("--dataset_path " + folder + ": its class folders hold no images");
  NameResults(&items);
  return items;
}

std::string Unreadable(const std::vector<Item>& items, const std::string& converted_path) {
  std::map<std::string, int> counts;
  for (const Item& item : items) {
    std::error_code error;
    if (HasOwnEnding(item.path) || BeginsAsOwn(item.path)) continue;
    if (converted_path.empty() || !fs::exists(fs::path(converted_path) / item.converted, error)) {
      ++counts[EndingOf(item.path)];
    }
  }
  std::string text;
  for (const auto& [ending, count] : counts) text += (text.empty() ? "" : ", ") + std::to_string(count) + " " + ending;
  return text;
}

}  // namespace ddrnet
