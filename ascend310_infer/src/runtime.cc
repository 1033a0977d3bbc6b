#include "runtime.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <thread>

#include "error.h"
#include "include/api/context.h"
#include "mindir.h"

namespace ddrnet {
namespace {

constexpr char kAscendManager[] = "/dev/davinci_manager";  // there wherever the driver is loaded

bool Exists(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0;
}

std::shared_ptr<mindspore::Context> MakeContext(const std::string& device_target, int device_id) {
  auto context = std::make_shared<mindspore::Context>();
  if (device_target == "Ascend") {
    auto device = std::make_shared<mindspore::AscendDeviceInfo>();
    device->SetDeviceID(static_cast<uint32_t>(device_id));
    // The default runs every operator in float16, which moves the accuracy; this one only those that need it.
    device->SetPrecisionMode("preferred_fp32");
    context->MutableDeviceInfo().push_back(device);
  } else {
    context->SetThreadNum(static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency())));
    context->MutableDeviceInfo().push_back(std::make_shared<mindspore::CPUDeviceInfo>());
  }
  return context;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "(" + text + ")";
}

// Whether this MindSpore Lite is known to be newer than those that read format version 1 alone.
bool IsNew(const std::string& version) {
  int major = 0, minor = 0;
  const size_t digit = version.find_first_of("0123456789");
  if (digit == std::string::npos || std::sscanf(version.c_str() + digit, "%d.%d", &major, &minor) != 2) return false;
  return major > 2 || (major == 2 && minor >= 3);
}

// What may be amiss where a model could not be built, as far as can be told from outside the runtime.
std::string Advice(int version, const std::string& device_target, int device_id, const std::string& lite) {
  const std::string card = "/dev/davinci" + std::to_string(device_id);
  if (device_target == "Ascend" && !Exists(kAscendManager)) {
    return "there is no Ascend card here (" + std::string(kAscendManager) +
           " is missing); npu-smi info must list it, and DEVICE_TARGET=CPU runs without one";
  }
  if (device_target == "Ascend" && !Exists(card)) {
    return "there is no Ascend card " + std::to_string(device_id) + " (" + card +
           " is missing); npu-smi info lists those there are";
  }
  std::string advice = (lite.empty() ? "this MindSpore Lite" : lite) + " cannot build it";
  if (version > 1 && !IsNew(lite)) {
    advice += "; it has MindIR format version " + std::to_string(version) +
              ", which may be too new: export.py --mindir_version 1 writes one for runtimes before 2.3";
  }
  if (device_target == "Ascend") {
    advice +=
        "; CANN must be in the environment (source /usr/local/Ascend/ascend-toolkit/set_env.sh) and its te and "
        "topi wheels in the PATH's Python, as the card's operators are compiled now";
  }
  return advice;
}

}  // namespace

Runtime::Runtime(const std::string& mindir_path, const Spec& spec, const std::string& device_target, int device_id)
    : path_(mindir_path), spec_(spec) {
  const int version = MindirVersion(mindir_path);
  const mindspore::Status status = model_.Build(mindir_path, mindspore::kMindIR, MakeContext(device_target, device_id));
  if (!status.IsOk()) {
    throw UserError(mindir_path + ": " + Advice(version, device_target, device_id, mindspore::Version()) +
                    "; MindSpore Lite says: " + status.ToString() + " (GLOG_v=1 in the environment shows more)");
  }
  inputs_ = model_.GetInputs();
  CheckShapes();
  image_floats_ = static_cast<size_t>(spec_.input_shape[1] * spec_.input_shape[2] * spec_.input_shape[3]);
}

void Runtime::CheckShapes() const {
  if (inputs_.size() != 1) throw UserError(path_ + ": has " + std::to_string(inputs_.size()) + " inputs, not one");
  if (inputs_[0].Shape() != spec_.input_shape) {
    throw UserError(path_ + ": its input is " + ShapeText(inputs_[0].Shape()) + ", but " + SpecPath(path_) + " says " +
                    ShapeText(spec_.input_shape) + "; export both again");
  }
  if (inputs_[0].DataType() != mindspore::DataType::kNumberTypeFloat32) {
    throw UserError(path_ + ": its input is not float32; export it with export.py");
  }
}

float* Runtime::Input(int index) {
  auto* data = static_cast<float*>(inputs_[0].MutableData());
  if (data == nullptr) throw UserError(path_ + ": the runtime has no memory for the input");
  return data + index * image_floats_;
}

const float* Runtime::Run() {
  const mindspore::Status status = model_.Predict(inputs_, &outputs_);
  if (!status.IsOk()) {
    throw UserError(path_ + ": the device failed; MindSpore Lite says: " + status.ToString() +
                    " (GLOG_v=1 in the environment shows more)");
  }
  if (outputs_.size() != 1 || outputs_[0].DataType() != mindspore::DataType::kNumberTypeFloat32 ||
      outputs_[0].DataSize() != static_cast<size_t>(batch_size()) * classes() * sizeof(float)) {
    throw UserError(path_ + ": its output is not float32 " + ShapeText(spec_.output_shape) + ", as " + SpecPath(path_) +
                    " says; export both again");
  }
  logits_ = outputs_[0].Data();
  return static_cast<const float*>(logits_.get());
}

}  // namespace ddrnet
