// Small passes: images from (N, C, H, W) to (N, H, W, C), the mean over the pixels, a ReLU of bfloat16, a ReLU's
// gradient.

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

// x (N, H, W, C) to the mean over its pixels, (N, C) of float32.
template <typename Type>
void PoolOf(const Tensors& t) {
  constexpr int64_t kPiece = 256;  // channels
  const int64_t pixels = t.Dim(0, 1) * t.Dim(0, 2), channels = t.Dim(0, 3), pieces = DivideUp(channels, kPiece);
  const float share = 1.0f / static_cast<float>(pixels);
  Parallel(t.Dim(0, 0) * pieces, [&](int64_t job) {
    const int64_t image = job / pieces, first = job % pieces * kPiece, count = std::min(kPiece, channels - first);
    const Type* x = static_cast<const Type*>(t.data[0]) + image * pixels * channels + first;
    float sums[kPiece] = {};
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t c = 0; c < count; ++c) sums[c] += AsFloat(x[p * channels + c]);
    }
    float* to = t.Out(1) + image * channels + first;
    for (int64_t c = 0; c < count; ++c) to[c] = sums[c] * share;
  });
}

void Pool(const Tensors& t) { t.Narrow(0) ? PoolOf<Bfloat16>(t) : PoolOf<float>(t); }

// The gradient of y = relu(x): dy where y is positive.
void ReluGradient(const Tensors& t) {
  constexpr int64_t kPiece = 1 << 15;
  const int64_t size = t.Size(0);
  Parallel(DivideUp(size, kPiece), [&](int64_t job) {
    const int64_t last = std::min((job + 1) * kPiece, size);
    for (int64_t i = job * kPiece; i < last; ++i) t.Out(2)[i] = t.In(1)[i] > 0 ? t.In(0)[i] : 0.0f;
  });
}

// x of bfloat16 through a ReLU.
void ReluOfBfloat16(const Tensors& t) {
  constexpr int64_t kPiece = 1 << 15;
  const int64_t size = t.Size(0);
  const auto* from = static_cast<const Bfloat16*>(t.data[0]);
  auto* to = static_cast<Bfloat16*>(t.data[1]);
  Parallel(DivideUp(size, kPiece), [&](int64_t job) {
    const int64_t last = std::min((job + 1) * kPiece, size);
    for (int64_t i = job * kPiece; i < last; ++i) {  // negative numbers are those up to infinity, with the sign
      to[i] = from[i] > 0x8000 && from[i] <= 0xff80 ? 0 : from[i];
    }
  });
}

}  // namespace
}  // namespace ddrnet

DDRNET_OPERATOR(pool, ddrnet::Pool)
DDRNET_OPERATOR(relu_gradient, ddrnet::ReluGradient)
DDRNET_OPERATOR(relu_bfloat16, ddrnet::ReluOfBfloat16)
DDRNET_OPERATOR(channels_last, ddrnet::ChannelsLast)
