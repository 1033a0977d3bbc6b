// The images of an ImageNet-style folder.
#ifndef DDRNET_DATASET_H_
#define DDRNET_DATASET_H_

#include <string>
#include <vector>

namespace ddrnet {

struct Item {
  std::string path;
  std::string converted;    // <class>/<file>.png, below the folder of PNGs that preprocess.py wrote
  std::string result_name;  // <class>__<file without its ending>_0.bin, or <class>__<file>_0.bin where images share it;
                            // of a name of more than 255 bytes the SHA-256 stands in its place in both
};

// The images in `folder`/<class>/, sorted by class and file name. Folders below a class, hidden files and files whose
// ending is no image's are passed over. Throws UserError where the folder is missing, has no class folders or no
// images, or where two images would share even the longer name of a result. src/serving/results.py has the same rule.
std::vector<Item> ListImages(const std::string& folder);

// "12 .webp, 3 .tif": the endings of other images than JPEG and PNG, and how many have them, where `converted_path`
// holds no PNG of the image. Empty: there are none.
std::string Unreadable(const std::vector<Item>& items, const std::string& converted_path);

}  // namespace ddrnet

#endif  // DDRNET_DATASET_H_
