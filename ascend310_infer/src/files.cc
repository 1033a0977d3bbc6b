#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace ddrnet {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int number() const { return number_; }

 private:
  const int number_;
};

std::string Unreadable(const char* why) { return std::string("it cannot be read (") + why + ")"; }

}  // namespace

std::string ReadFile(const std::string& path, size_t limit, std::vector<uint8_t>* bytes) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  struct stat status;
  if (file.number() < 0 || fstat(file.number(), &status) != 0) return Unreadable(std::strerror(errno));
  if (S_ISDIR(status.st_mode)) return Unreadable("it is a folder");
  if (!S_ISREG(status.st_mode)) return Unreadable("it is no regular file");
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > limit) return "it has " + std::to_string(size) + " bytes; at most " + std::to_string(limit) + " are read";
  bytes->resize(static_cast<size_t>(size));
  size_t done = 0;
  while (done < bytes->size()) {
    const ssize_t got = read(file.number(), bytes->data() + done, bytes->size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Unreadable(std::strerror(errno));
    if (got == 0) break;  // it has become shorter
    done += static_cast<size_t>(got);
  }
  bytes->resize(done);
  return "";
}

}  // namespace ddrnet
