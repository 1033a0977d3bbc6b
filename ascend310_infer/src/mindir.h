// A look at a MindIR file that says why a runtime may refuse it.
#ifndef DDRNET_MINDIR_H_
#define DDRNET_MINDIR_H_

#include <string>

namespace ddrnet {

// The format version of a MindIR file: the field mind_ir_version of its protocol buffer, 0 where it is not set.
// Throws UserError where the file is missing, empty, cut off or no MindIR. The weights are skipped, not read.
int MindirVersion(const std::string& path);

}  // namespace ddrnet

#endif  // DDRNET_MINDIR_H_
