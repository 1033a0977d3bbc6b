// The command line of `main`.
#ifndef DDRNET_OPTIONS_H_
#define DDRNET_OPTIONS_H_

#include <string>

namespace ddrnet {

struct Options {
  std::string mindir_path;
  std::string dataset_path;
  std::string converted_path;  // PNGs of images of other formats; empty: there are none
  std::string result_path = "result_Files";
  std::string time_path = "time_Result";
  std::string device_target = "Ascend";
  int device_id = 0;
  int threads = 0;     // decoder threads; 0: one a processor
  int batch_size = 0;  // 0: the model's
  bool help = false;
};

extern const char kUsage[];

// Throws UserError where a flag is unknown, lacks its value, has a wrong one, or is needed and not there.
Options ParseOptions(int argc, char** argv);

}  // namespace ddrnet

#endif  // DDRNET_OPTIONS_H_
