#include "dataset.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>

#include "error.h"

namespace ddrnet {
namespace {

namespace fs = std::filesystem;

bool LooksLikeImage(const fs::path &path) {
  std::string ending = path.extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
  // Those that eval.py takes for images, so that both see the same files.
  static const char *const kEndings[] = {".bmp", ".gif", ".jpe", ".jpeg", ".jpg",  ".pbm",
                                         ".pgm", ".png", ".ppm", ".tif",  ".tiff", ".webp"};
  return std::find(std::begin(kEndings), std::end(kEndings), ending) != std::end(kEndings);
}

std::vector<fs::path> Sorted(const fs::path &folder, bool folders) {
  std::vector<fs::path> paths;
  for (const fs::directory_entry &entry : fs::directory_iterator(folder)) {
    if (entry.path().filename().string()[0] == '.') continue;
    if (folders ? entry.is_directory() : entry.is_regular_file() && LooksLikeImage(entry.path())) {
      paths.push_back(entry.path());
    }
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

std::vector<Item> ListImages(const std::string &folder) {
  if (!fs::is_directory(folder)) throw UserError("--dataset_path " + folder + ": no such folder");
  std::vector<Item> items;
  std::map<std::string, std::string> taken;
  try {
    const std::vector<fs::path> classes = Sorted(folder, true);
    if (classes.empty()) {
      throw UserError("--dataset_path " + folder + ": has no class folders; each class's images lie in one of its own");
    }
    for (const fs::path &name : classes) {
      for (const fs::path &path : Sorted(name, false)) {
        Item item{path.string(), name.filename().string() + "__" + path.stem().string() + "_0.bin"};
        const auto first = taken.emplace(item.result_name, item.path);
        if (!first.second) {
          throw UserError(item.path + " and " + first.first->second + " would share the result file " +
                          item.result_name + "; rename one");
        }
        items.push_back(std::move(item));
      }
    }
  } catch (const fs::filesystem_error &error) {
    throw UserError(error.path1().string() + ": cannot be listed (" + error.code().message() + ")");
  }
  if (items.empty()) throw UserError("--dataset_path " + folder + ": its class folders hold no images");
  return items;
}

}  // namespace ddrnet
