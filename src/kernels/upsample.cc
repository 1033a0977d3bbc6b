// Bilinear upsampling and its gradient, without aligned corners.

#include "kernels.h"

namespace ddrnet {
namespace {

// What one output row (or column) reads: two input rows and their shares.
struct Source {
  int64_t low, high;
  float low_share, high_share;
};

template <bool half_pixel_centers>
std::vector<Source> Sources(int64_t size, int64_t out_size) {
  std::vector<Source> sources;
  const float scale = static_cast<float>(size) / static_cast<float>(out_size);
  for (int64_t i = 0; i < out_size; ++i) {
    const float offset = half_pixel_centers ? 0.5f : 0.0f;
    const float place = std::max((static_cast<float>(i) + offset) * scale - offset, 0.0f);
    const int64_t low = std::min(static_cast<int64_t>(place), size - 1);
    const float share = place - static_cast<float>(low);
    sources.push_back({low, std::min(low + 1, size - 1), 1.0f - share, share});
  }
  return sources;
}

// x and something of the output's height and width, all of one type, to y: x upsampled, or with `merges` relu(that
// something + x upsampled).
template <bool half_pixel_centers, bool merges, typename Type>
void UpsampleOf(const Tensors& t) {
  const int64_t images = t.Dim(0, 0), height = t.Dim(0, 1), width = t.Dim(0, 2), channels = t.Dim(0, 3);
  const int64_t out_height = t.Dim(2, 1), out_width = t.Dim(2, 2);
  const auto rows = Sources<half_pixel_centers>(height, out_height);
  const auto columns = Sources<half_pixel_centers>(width, out_width);
  Parallel(images * out_height, [&](int64_t job) {
    const Source& row = rows[job % out_height];
    const Type* image = static_cast<const Type*>(t.data[0]) + job / out_height * height * width * channels;
    const Type *low = image + row.low * width * channels, *high = image + row.high * width * channels;
    const int64_t first = job * out_width * channels;
    const Type* like = static_cast<const Type*>(t.data[1]) + (merges ? first : 0);  // else not of as many channels
    Type* y = static_cast<Type*>(t.data[2]) + first;
    for (const Source& column : columns) {
      const int64_t left = column.low * channels, right = column.high * channels;
      for (int64_t i = 0; i < channels; ++i) {
        const float above = AsFloat(low[left + i]) * column.low_share + AsFloat(low[right + i]) * column.high_share;
        const float below = AsFloat(high[left + i]) * column.low_share + AsFloat(high[right + i]) * column.high_share;
        float sum = above * row.low_share + below * row.high_share;
        if constexpr (merges) {
          sum += AsFloat(like[i]);
          if (sum < 0) sum = 0;
        }
        y[i] = FromFloat<Type>(sum);
      }
      y += channels;
      if (merges) like += channels;
    }
  });
}

template <bool half_pixel_centers>
void Upsample(const Tensors& t) {
  UpsampleOf<half_pixel_centers, false, float>(t);
}

template <bool half_pixel_centers>
void Merge(const Tensors& t) {
  t.Narrow(2) ? UpsampleOf<half_pixel_centers, true, Bfloat16>(t) : UpsampleOf<half_pixel_centers, true, float>(t);
}

template <bool half_pixel_centers>
void UpsampleGradient(const Tensors& t) {  // dy, x (for its shape alone), to dx
  const int64_t images = t.Dim(1, 0), height = t.Dim(1, 1), width = t.Dim(1, 2), channels = t.Dim(1, 3);
  const int64_t out_height = t.Dim(0, 1), out_width = t.Dim(0, 2);
  const auto rows = Sources<half_pixel_centers>(height, out_height);
  const auto columns = Sources<half_pixel_centers>(width, out_width);
  Parallel(images, [&](int64_t n) {
    float* image = t.Out(2) + n * height * width * channels;
    const float* dy = t.In(0) + n * out_height * out_width * channels;
    std::fill_n(image, height * width * channels, 0.0f);
    for (const Source& row : rows) {
      for (const Source& column : columns) {
        const auto add = [&](int64_t h, int64_t w, float share) {
          float* to = image + (h * width + w) * channels;
          for (int64_t i = 0; i < channels; ++i) to[i] += dy[i] * share;
        };
        add(row.low, column.low, row.low_share * column.low_share);
        add(row.low, column.high, row.low_share * column.high_share);
        add(row.high, column.low, row.high_share * column.low_share);
        add(row.high, column.high, row.high_share * column.high_share);
        dy += channels;
      }
    }
  });
}

}  // namespace
}  // namespace ddrnet

DDRNET_OPERATOR(upsample, ddrnet::Upsample<false>)
DDRNET_OPERATOR(upsample_half_pixel, ddrnet::Upsample<true>)
DDRNET_OPERATOR(merge, ddrnet::Merge<false>)
DDRNET_OPERATOR(merge_half_pixel, ddrnet::Merge<true>)
DDRNET_OPERATOR(merge_bfloat16, ddrnet::Merge<false>)
DDRNET_OPERATOR(merge_half_pixel_bfloat16, ddrnet::Merge<true>)
DDRNET_OPERATOR(upsample_gradient, ddrnet::UpsampleGradient<false>)
DDRNET_OPERATOR(upsample_gradient_half_pixel, ddrnet::UpsampleGradient<true>)
