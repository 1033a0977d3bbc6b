#include "options.h"

#include <cstdlib>
#include <map>

#include "error.h"

namespace ddrnet {
namespace {

int WholeNumber(const std::string& flag, const std::string& text, int low, int high) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < low || value > high) {
    throw UserError(flag + " must be a whole number from " + std::to_string(low) + " to " + std::to_string(high) +
                    ", not \"" + text + "\"");
  }
  return static_cast<int>(value);
}

}  // namespace

const char kUsage[] =
    "usage: main --mindir_path FILE --dataset_path DIR [--result_path DIR] [--time_path DIR]\n"
    "            [--converted_path DIR] [--device_target Ascend|CPU] [--device_id N] [--threads N]\n"
    "            [--batch_size N]\n"
    "\n"
    "Runs an exported network over DIR/<class>/<image> and writes the logits of each image.\n"
    "\n"
    "  --mindir_path    the network; export.py's .json lies beside it\n"
    "  --dataset_path   a folder of class folders with images; JPEG and PNG are decoded here\n"
    "  --converted_path preprocess.py's PNGs of the images of other formats, preprocess_Result/converted\n"
    "  --result_path    where <class>__<image>_0.bin goes, float32 logits (default result_Files)\n"
    "  --time_path      where test_perform_static.txt goes (default time_Result)\n"
    "  --device_target  Ascend (default) or CPU\n"
    "  --device_id      which card (default 0)\n"
    "  --threads        decoder threads; 0, the default: one a processor\n"
    "  --batch_size     must be what the network was exported for; 0, the default: whatever that is\n"
    "\n"
    "exit code: 0 done; 2 bad input, named on one line; 3 done, but some images could not be decoded\n";

Options ParseOptions(int argc, char** argv) {
  Options options;
  const std::map<std::string, std::string*> texts = {
      {"--mindir_path", &options.mindir_path},       {"--dataset_path", &options.dataset_path},
      {"--result_path", &options.result_path},       {"--time_path", &options.time_path},
      {"--converted_path", &options.converted_path}, {"--device_target", &options.device_target}};
  const std::map<std::string, std::pair<int*, int>> numbers = {{"--device_id", {&options.device_id, 1023}},
                                                               {"--threads", {&options.threads, 256}},
                                                               {"--batch_size", {&options.batch_size, 4096}}};
  for (int i = 1; i < argc; ++i) {
    std::string flag = argv[i], value;
    if (flag == "--help" || flag == "-h") {
      options.help = true;
      return options;
    }
    const size_t equals = flag.find('=');
    const bool joined = equals != std::string::npos;
    if (joined) {
      value = flag.substr(equals + 1);
      flag.resize(equals);
    }
    const auto text = texts.find(flag);
    const auto number = numbers.find(flag);
    if (text == texts.end() && number == numbers.end()) throw UserError(flag + ": no such flag; --help lists them");
    if (!joined) {
      if (++i == argc) throw UserError(flag + " needs a value");
      value = argv[i];
    }
    if (text != texts.end()) {
      if (value.empty()) throw UserError(flag + " must not be empty");
      *text->second = value;
    } else {
      *number->second.first = WholeNumber(flag, value, 0, number->second.second);
    }
  }
  if (options.mindir_path.empty()) throw UserError("--mindir_path is needed; --help lists the flags");
  if (options.dataset_path.empty()) throw UserError("--dataset_path is needed; --help lists the flags");
  if (options.device_target != "Ascend" && options.device_target != "CPU") {
    throw UserError("--device_target must be Ascend or CPU, not \"" + options.device_target + "\"");
  }
  return options;
}

}  // namespace ddrnet
