// The files that a run leaves.
#ifndef DDRNET_RESULTS_H_
#define DDRNET_RESULTS_H_

#include <cstddef>
#include <string>

namespace ddrnet {

// Makes the folder, or empties it of the result files of an earlier run; other files stay.
// Throws UserError where that cannot be done.
void PrepareResultFolder(const std::string& folder);

void MakeFolder(const std::string& folder);

// Writes a whole file. Throws UserError, naming it, where the disk is full or the folder cannot be written.
void WriteFile(const std::string& path, const void* data, size_t size);

}  // namespace ddrnet

#endif  // DDRNET_RESULTS_H_
