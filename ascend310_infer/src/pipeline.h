// Everything that happens to the images, overlapped.
//
//   reader ──> decoders ──> inference ──> writer
//     ^                         │
//     └──── slots come back ────┘
//
// One thread reads files, several decode and preprocess them, the caller's thread runs the network, one writes the
// logits. An image lives in one of a fixed number of slots from reading to inference, so memory does not grow with the
// data set. The network sees the images in their order, whichever decoder is first, so that a run repeats exactly.
#ifndef DDRNET_PIPELINE_H_
#define DDRNET_PIPELINE_H_

#include <string>
#include <vector>

#include "dataset.h"
#include "runtime.h"
#include "spec.h"

namespace ddrnet {

struct Report {
  size_t images = 0;       // decoded and inferred
  size_t undecodable = 0;  // named on stderr, without a result
  double seconds = 0;      // from the first file read to the last result written
  double model_seconds = 0;
};

// Throws UserError where the device fails or a result cannot be written; all threads have ended then.
Report RunPipeline(const std::vector<Item>& items, const Spec& spec, const std::string& converted_path,
                   const std::string& result_path, int threads, Runtime* runtime);

}  // namespace ddrnet

#endif  // DDRNET_PIPELINE_H_
