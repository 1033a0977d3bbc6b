// Batch norm in training and its gradient (Ioffe and Szegedy, arXiv 1502.03167, algorithm 1 and section 3).
//
// A tensor is (rows, channels). Sums over rows are taken in chunks whose bounds follow from the shape and added up in
// float64 in the chunks' order, so the result does not depend on the number of threads.

#include "kernels.h"

#include <cmath>

namespace ddrnet {
namespace {

struct Rows {
  int64_t rows, channels, image, chunk, chunks;  // image: floats of one
  explicit Rows(const Tensors& t, int tensor) : rows(1), channels(t.Dim(tensor, 3)) {
    for (int axis = 0; axis < 3; ++axis) rows *= t.Dim(tensor, axis);
    image = t.Dim(tensor, 1) * t.Dim(tensor, 2) * channels;
    chunk = std::max<int64_t>(1, (1 << 15) / channels);  // 128 KiB, which stays in the second cache
    chunks = DivideUp(rows, chunk);
  }
  int64_t first(int64_t c) const { return c * chunk; }
  int64_t count(int64_t c) const { return std::min(chunk, rows - c * chunk); }
};

// What is added to the normalized x: nothing; a shortcut; or a shortcut where drop path multiplies, image by image,
// what is normalized or the shortcut by a scale (Huang et al., arXiv 1603.09382).
enum class Added { kNothing, kShortcut, kDropBranch, kDropShortcut };
constexpr bool Adds(Added added) { return added != Added::kNothing; }
constexpr bool Drops(Added added) { return added == Added::kDropBranch || added == Added::kDropShortcut; }

// x, gamma, beta, moving mean, moving variance, rule (2: eps, momentum)[, shortcut[, scale (images)]] to y, mean,
// 1 / deviation; both moving ones change in place. y is the normalized x and what is added, through a ReLU where asked
// for.
template <bool relu, Added added>
void Normalize(const Tensors& t) {
  const Rows r(t, 0);
  const int64_t channels = r.channels, image = r.image;
  const float *x = t.In(0), *gamma = t.In(1), *beta = t.In(2);
  float *moving_mean = t.Out(3), *moving_variance = t.Out(4);
  const double eps = t.In(5)[0], momentum = t.In(5)[1];
  const float* shortcut = Adds(added) ? t.In(6) : nullptr;
  const float* scales = Drops(added) ? t.In(7) : nullptr;
  constexpr int out = 6 + Adds(added) + Drops(added);
  float *y = t.Out(out), *mean = t.Out(out + 1), *inverse = t.Out(out + 2);
  // Of each chunk the mean, and the squared distances from it, which no cancellation spoils.
  float* means = Scratch(r.chunks * channels);
  float* squares = Scratch(r.chunks * channels);
  Parallel(r.chunks, [&](int64_t c) {
    const float* from = x + r.first(c) * channels;
    const int64_t count = r.count(c);
    float *m = means + c * channels, *s = squares + c * channels;
    std::fill_n(m, channels, 0.0f);
    std::fill_n(s, channels, 0.0f);
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t i = 0; i < channels; ++i) m[i] += from[row * channels + i];
    }
    const float share = 1.0f / static_cast<float>(count);
    for (int64_t i = 0; i < channels; ++i) m[i] *= share;
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t i = 0; i < channels; ++i) {
        const float off = from[row * channels + i] - m[i];
        s[i] += off * off;
      }
    }
  });
  float *scale = Scratch(channels), *shift = Scratch(channels);
  const double rows = static_cast<double>(r.rows);
  for (int64_t i = 0; i < channels; ++i) {  // joined by Chan, Golub and LeVeque, "Updating formulae", 1979
    double total = 0, square = 0;
    for (int64_t c = 0; c < r.chunks; ++c) total += static_cast<double>(means[c * channels + i]) * r.count(c);
    const double average = total / rows;
    for (int64_t c = 0; c < r.chunks; ++c) {
      const double off = means[c * channels + i] - average;
      square += squares[c * channels + i] + off * off * r.count(c);
    }
    const double variance = square / rows;
    mean[i] = static_cast<float>(average);
    inverse[i] = static_cast<float>(1.0 / std::sqrt(variance + eps));
    scale[i] = gamma[i] * inverse[i];
    shift[i] = beta[i] - mean[i] * scale[i];
    const double unbiased = r.rows > 1 ? square / (rows - 1) : variance;
    if (!std::isfinite(static_cast<float>(unbiased))) continue;  // the step is skipped, and these must survive it
    moving_mean[i] = static_cast<float>(momentum * moving_mean[i] + (1.0 - momentum) * average);
    moving_variance[i] = static_cast<float>(momentum * moving_variance[i] + (1.0 - momentum) * unbiased);
  }
  Parallel(r.chunks, [&](int64_t c) {
    const int64_t first = r.first(c) * channels, last = first + r.count(c) * channels;
    for (int64_t row = first; row < last; row += channels) {
      const float* __restrict__ from = x + row, * __restrict__ beside = shortcut + (Adds(added) ? row : 0);
      float* __restrict__ to = y + row;
      const float kept = Drops(added) ? scales[row / image] : 1.0f;
      for (int64_t i = 0; i < channels; ++i) {
        float value = from[i] * scale[i] + shift[i];
        if (added == Added::kDropBranch) value *= kept;
        if (Adds(added)) value += added == Added::kDropShortcut ? kept * beside[i] : beside[i];
        to[i] = relu && value < 0 ? 0 : value;
      }
    }
  });
}

// x, dy, gamma, mean, 1 / deviation[, y][, scale] to dx, dgamma, dbeta[, the shortcut's gradient where it is not dy].
// Behind a ReLU, y says where dy counts.
template <bool relu, Added added>
void NormalizeGradient(const Tensors& t) {
  const Rows r(t, 0);
  constexpr bool kAside = Drops(added) || (relu && Adds(added));
  const int64_t channels = r.channels, image = r.image;
  const float *x = t.In(0), *dy = t.In(1), *gamma = t.In(2), *mean = t.In(3), *inverse = t.In(4);
  const float* y = relu ? t.In(5) : nullptr;
  const float* scales = Drops(added) ? t.In(5 + relu) : nullptr;
  constexpr int out = 5 + relu + Drops(added);
  float *dx = t.Out(out), *dgamma = t.Out(out + 1), *dbeta = t.Out(out + 2);
  float* dshortcut = kAside ? t.Out(out + 3) : nullptr;
  float* sums = Scratch(r.chunks * channels);
  float* products = Scratch(r.chunks * channels);
  Parallel(r.chunks, [&](int64_t c) {
    const int64_t first = r.first(c) * channels, last = first + r.count(c) * channels;
    float* __restrict__ s = sums + c * channels, * __restrict__ p = products + c * channels;
    std::fill_n(s, channels, 0.0f);
    std::fill_n(p, channels, 0.0f);
    for (int64_t row = first; row < last; row += channels) {
      const float* __restrict__ from = x + row, * __restrict__ behind = y + (relu ? row : 0);
      const float* __restrict__ gradient = dy + row;
      const float kept = added == Added::kDropBranch ? scales[row / image] : 1.0f;
      for (int64_t i = 0; i < channels; ++i) {
        const float all = gradient[i], grad = (!relu || behind[i] > 0 ? all : 0) * kept;
        s[i] += grad;
        p[i] += grad * (from[i] - mean[i]);
      }
    }
  });
  // dx = gamma * inverse * (dy - mean of dy - normalized x * mean of (dy * normalized x))
  float *scale = Scratch(channels), *shift = Scratch(channels), *factor = Scratch(channels);
  for (int64_t i = 0; i < channels; ++i) {
    double sum = 0, product = 0;
    for (int64_t c = 0; c < r.chunks; ++c) sum += sums[c * channels + i], product += products[c * channels + i];
    dbeta[i] = static_cast<float>(sum);
    dgamma[i] = static_cast<float>(product * inverse[i]);
    scale[i] = gamma[i] * inverse[i];
    factor[i] = static_cast<float>(-scale[i] * product * inverse[i] * inverse[i] / r.rows);
    shift[i] = static_cast<float>(-scale[i] * sum / r.rows) - factor[i] * mean[i];
  }
  Parallel(r.chunks, [&](int64_t c) {
    const int64_t first = r.first(c) * channels, last = first + r.count(c) * channels;
    for (int64_t row = first; row < last; row += channels) {
      const float* __restrict__ from = x + row, * __restrict__ behind = y + (relu ? row : 0);
      const float* __restrict__ gradient = dy + row;
      float* __restrict__ to = dx + row, * __restrict__ aside = dshortcut + (kAside ? row : 0);
      const float kept = Drops(added) ? scales[row / image] : 1.0f;
      for (int64_t i = 0; i < channels; ++i) {
        const float all = gradient[i], grad = !relu || behind[i] > 0 ? all : 0;
        const float branch = added == Added::kDropBranch ? grad * kept : grad;
        to[i] = branch * scale[i] + from[i] * factor[i] + shift[i];
        if (kAside) aside[i] = added == Added::kDropShortcut ? grad * kept : grad;
      }
    }
  });
}

}  // namespace
}  // namespace ddrnet

#define DDRNET_BATCH_NORM(suffix, added)                                                                 \
  DDRNET_OPERATOR(batch_norm##suffix, (ddrnet::Normalize<false, ddrnet::Added::added>))                  \
  DDRNET_OPERATOR(batch_norm##suffix##_relu, (ddrnet::Normalize<true, ddrnet::Added::added>))            \
  DDRNET_OPERATOR(batch_norm_gradient##suffix, (ddrnet::NormalizeGradient<false, ddrnet::Added::added>)) \
  DDRNET_OPERATOR(batch_norm_gradient##suffix##_relu, (ddrnet::NormalizeGradient<true, ddrnet::Added::added>))

DDRNET_BATCH_NORM(, kNothing)
DDRNET_BATCH_NORM(_add, kShortcut)
DDRNET_BATCH_NORM(_drop_branch, kDropBranch)
DDRNET_BATCH_NORM(_drop_shortcut, kDropShortcut)
