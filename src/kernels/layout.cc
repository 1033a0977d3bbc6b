// Images from (N, C, H, W) to (N, H, W, C).

#include "kernels.h"

namespace ddrnet {
namespace {

void ChannelsLast(const Tensors& t) {
  const int64_t images = t.Dim(0, 0), channels = t.Dim(0, 1), pixels = t.Dim(0, 2) * t.Dim(0, 3);
  constexpr int64_t kPiece = 4096;  // pixels
  const int64_t pieces = DivideUp(pixels, kPiece);
  Parallel(images * pieces, [&](int64_t job) {
    const int64_t image = job / pieces, first = job % pieces * kPiece, last = std::min(first + kPiece, pixels);
    const float* from = t.In(0) + image * channels * pixels;
    float* to = t.Out(1) + image * channels * pixels;
    if (channels == 3) {
      const float *red = from, *green = from + pixels, *blue = from + 2 * pixels;
      for (int64_t i = first; i < last; ++i) to[3 * i] = red[i], to[3 * i + 1] = green[i], to[3 * i + 2] = blue[i];
      return;
    }
    for (int64_t i = first; i < last; ++i) {
      for (int64_t c = 0; c < channels; ++c) to[i * channels + c] = from[c * pixels + i];
    }
  });
}

}  // namespace
}  // namespace ddrnet

DDRNET_OPERATOR(channels_last, ddrnet::ChannelsLast)
