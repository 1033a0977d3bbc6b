// The two ways in which things go wrong through no fault of the program.
#ifndef DDRNET_ERROR_H_
#define DDRNET_ERROR_H_

#include <stdexcept>

namespace ddrnet {

// Bad input, or a machine that cannot do what is asked: the run ends with one line and exit code 2.
class UserError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// One image cannot be decoded: the run goes on and ends with exit code 3.
class ImageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace ddrnet

#endif  // DDRNET_ERROR_H_
