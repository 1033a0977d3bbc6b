// Antialiased resizing in 8-bit fixed point, as Pillow's Image.resize does it.
#ifndef DDRNET_RESIZE_H_
#define DDRNET_RESIZE_H_

#include <string>
#include <vector>

#include "image.h"

namespace ddrnet {

enum class Filter { kBilinear, kBicubic, kLanczos };

// "bilinear", "bicubic" or "lanczos"; throws UserError on anything else.
Filter FilterByName(const std::string& name);

// For each output sample along one axis: the run of input samples it is made of and their weights.
struct AxisWeights {
  struct Run {
    int begin;  // first input sample
    int count;
  };
  std::vector<Run> runs;
  std::vector<int32_t> weights;  // `stride` an output sample, in units of 2^-22
  int stride = 0;
};

// Weights that resample `size_in` samples to `size_out`, of which only outputs [begin, begin + count) are wanted.
// The filter is stretched by the scale when the axis shrinks, which is what makes it antialiased.
AxisWeights ComputeWeights(Filter filter, int size_in, int size_out, int begin, int count);

// Resizes to (full_width, full_height) and keeps the box of (width, height) at (left, top), which lies in the result;
// nothing else is computed. First along rows, rounded to 8 bits, then along columns; an axis that keeps its size is
// left as it is.
void ResizeAndCrop(const Image& source, Filter filter, int full_width, int full_height, int left, int top, int width,
                   int height, Image* target);

}  // namespace ddrnet

#endif  // DDRNET_RESIZE_H_
