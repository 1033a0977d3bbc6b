// The images of an ImageNet-style folder.
#ifndef DDRNET_DATASET_H_
#define DDRNET_DATASET_H_

#include <string>
#include <vector>

namespace ddrnet {

struct Item {
  std::string path;
  std::string result_name;  // <class>__<file without its ending>_0.bin
};

// The images in `folder`/<class>/, sorted by class and file name. Folders below a class, hidden files and files whose
// ending is no image's are passed over. Throws UserError where the folder is missing, has no class folders or no
// images, or where two images would share a result file.
std::vector<Item> ListImages(const std::string &folder);

}  // namespace ddrnet

#endif  // DDRNET_DATASET_H_
