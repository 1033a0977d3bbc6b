// Batch norm in training and its gradient (Ioffe and Szegedy, arXiv 1502.03167, algorithm 1 and section 3).
//
// A tensor is (rows, channels). Sums over rows are taken in chunks whose bounds follow from the shape and added up in
// float64 in the chunks' order, so the result does not depend on the number of threads.

#include "kernels.h"

#include <cmath>

namespace ddrnet {
namespace {

enum Slots { kFirst, kSecond, kScale, kShift, kFactor };

struct Rows {
  int64_t rows, channels, chunk, chunks;
  explicit Rows(const Tensors& t, int tensor) : rows(1), channels(t.Dim(tensor, 3)) {
    for (int axis = 0; axis < 3; ++axis) rows *= t.Dim(tensor, axis);
    chunk = std::max<int64_t>(1, (1 << 15) / channels);  // 128 KiB, which stays in the second cache
    chunks = DivideUp(rows, chunk);
  }
  int64_t first(int64_t c) const { return c * chunk; }
  int64_t count(int64_t c) const { return std::min(chunk, rows - c * chunk); }
};

// x, gamma, beta, moving mean, moving variance, rule (2: eps, momentum)[, shortcut] to y, mean, 1 / deviation; both
// moving ones change in place. y is the normalized x, plus the shortcut, through a ReLU where asked for.
template <bool relu, bool adds>
void Normalize(const Tensors& t) {
  const Rows r(t, 0);
  const int64_t channels = r.channels;
  const float *x = t.In(0), *gamma = t.In(1), *beta = t.In(2);
  float *moving_mean = t.Out(3), *moving_variance = t.Out(4);
  const double eps = t.In(5)[0], momentum = t.In(5)[1];
  const float* shortcut = adds ? t.In(6) : nullptr;
  constexpr int out = adds ? 7 : 6;
  float *y = t.Out(out), *mean = t.Out(out + 1), *inverse = t.Out(out + 2);
  // Of each chunk the mean, and the squared distances from it, which no cancellation spoils.
  float* means = Scratch(kFirst, r.chunks * channels);
  float* squares = Scratch(kSecond, r.chunks * channels);
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
  float *scale = Scratch(kScale, channels), *shift = Scratch(kShift, channels);
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
      const float *__restrict__ from = x + row, *__restrict__ added = shortcut + (adds ? row : 0);
      float* __restrict__ to = y + row;
      for (int64_t i = 0; i < channels; ++i) {
        float value = from[i] * scale[i] + shift[i];
        if (adds) value += added[i];
        to[i] = relu && value < 0 ? 0 : value;
      }
    }
  });
}

// x, dy, gamma, mean, 1 / deviation[, y] to dx, dgamma, dbeta[, the shortcut's gradient]. Behind a ReLU, y says where dy
// counts.
template <bool relu, bool adds>
void NormalizeGradient(const Tensors& t) {
  const Rows r(t, 0);
  const int64_t channels = r.channels;
  const float *x = t.In(0), *dy = t.In(1), *gamma = t.In(2), *mean = t.In(3), *inverse = t.In(4);
  const float* y = relu ? t.In(5) : nullptr;
  constexpr int out = relu ? 6 : 5;
  float *dx = t.Out(out), *dgamma = t.Out(out + 1), *dbeta = t.Out(out + 2);
  float* dshortcut = relu && adds ? t.Out(out + 3) : nullptr;
  float* sums = Scratch(kFirst, r.chunks * channels);
  float* products = Scratch(kSecond, r.chunks * channels);
  Parallel(r.chunks, [&](int64_t c) {
    const int64_t first = r.first(c) * channels, last = first + r.count(c) * channels;
    float *__restrict__ s = sums + c * channels, *__restrict__ p = products + c * channels;
    std::fill_n(s, channels, 0.0f);
    std::fill_n(p, channels, 0.0f);
    for (int64_t row = first; row < last; row += channels) {
      const float *__restrict__ from = x + row, *__restrict__ behind = y + (relu ? row : 0);
      const float* __restrict__ gradient = dy + row;
      for (int64_t i = 0; i < channels; ++i) {
        const float all = gradient[i], grad = !relu || behind[i] > 0 ? all : 0;
        s[i] += grad;
        p[i] += grad * (from[i] - mean[i]);
      }
    }
  });
  // dx = gamma * inverse * (dy - mean of dy - normalized x * mean of (dy * normalized x))
  float *scale = Scratch(kScale, channels), *shift = Scratch(kShift, channels), *factor = Scratch(kFactor, channels);
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
      const float *__restrict__ from = x + row, *__restrict__ behind = y + (relu ? row : 0);
      const float* __restrict__ gradient = dy + row;
      float *__restrict__ to = dx + row, *__restrict__ aside = dshortcut + (relu && adds ? row : 0);
      for (int64_t i = 0; i < channels; ++i) {
        const float all = gradient[i], grad = !relu || behind[i] > 0 ? all : 0;
        to[i] = grad * scale[i] + from[i] * factor[i] + shift[i];
        if (relu && adds) aside[i] = grad;
      }
    }
  });
}

}  // namespace
}  // namespace ddrnet

DDRNET_OPERATOR(batch_norm, (ddrnet::Normalize<false, false>))
DDRNET_OPERATOR(batch_norm_relu, (ddrnet::Normalize<true, false>))
DDRNET_OPERATOR(batch_norm_add, (ddrnet::Normalize<false, true>))
DDRNET_OPERATOR(batch_norm_add_relu, (ddrnet::Normalize<true, true>))
DDRNET_OPERATOR(batch_norm_gradient, (ddrnet::NormalizeGradient<false, false>))
DDRNET_OPERATOR(batch_norm_gradient_relu, (ddrnet::NormalizeGradient<true, false>))
DDRNET_OPERATOR(batch_norm_gradient_add_relu, (ddrnet::NormalizeGradient<true, true>))
