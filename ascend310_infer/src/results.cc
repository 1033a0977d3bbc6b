#include "results.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "error.h"

namespace ddrnet {
namespace {

namespace fs = std::filesystem;

bool IsResult(const std::string& name) {
  const std::string ending = "_0.bin";
  return name.size() > ending.size() && name.compare(name.size() - ending.size(), ending.size(), ending) == 0 &&
         name.find("__") != std::string::npos;
}

}  // namespace

void MakeFolder(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (!fs::is_directory(folder)) {
    throw UserError(folder + ": the folder cannot be made" + (error ? " (" + error.message() + ")" : std::string()));
  }
}

void PrepareResultFolder(const std::string& folder) {
  MakeFolder(folder);
  try {
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      if (IsResult(entry.path().filename().string())) fs::remove(entry.path());
    }
  } catch (const fs::filesystem_error& error) {
    throw UserError(folder + ": results of an earlier run cannot be removed (" + error.code().message() + ")");
  }
}

void WriteFile(const std::string& path, const void* data, size_t size) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  bool written = file != nullptr && std::fwrite(data, 1, size, file) == size;
  int reason = errno;
  if (file != nullptr && std::fclose(file) != 0 && written) {
    written = false;
    reason = errno;
  }
  if (!written) throw UserError(path + ": cannot be written (" + std::strerror(reason) + ")");
}

}  // namespace ddrnet
