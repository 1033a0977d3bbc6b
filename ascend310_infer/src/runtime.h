// The exported network on MindSpore Lite.
#ifndef DDRNET_RUNTIME_H_
#define DDRNET_RUNTIME_H_

#include <cstdint>
#include <string>
#include <vector>

#include "include/api/model.h"
#include "spec.h"

namespace ddrnet {

class Runtime {
 public:
  // Loads and compiles the MindIR for a device, "Ascend" or "CPU". Throws UserError, saying what would help, where the
  // file or the device is not as it must be, or where the file and `spec` disagree.
  Runtime(const std::string& mindir_path, const Spec& spec, const std::string& device_target, int device_id);

  int batch_size() const { return static_cast<int>(spec_.input_shape[0]); }
  int classes() const { return static_cast<int>(spec_.output_shape[1]); }

  // Where image `index` of the next batch goes: 3 * H * W floats. A new address after each Run.
  float* Input(int index);

  // One batch, to its logits (batch size, classes). Throws UserError where the device fails.
  const float* Run();

 private:
  void CheckShapes() const;

  std::string path_;
  Spec spec_;
  mindspore::Model model_;
  std::vector<mindspore::MSTensor> inputs_, outputs_;
  size_t image_floats_ = 0;
  std::shared_ptr<const void> logits_;
};

}  // namespace ddrnet

#endif  // DDRNET_RUNTIME_H_
