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

// x, gamma, beta, moving mean, moving variance, rule (2: eps, momentum) to y, mean, 1 / deviation, both moving ones anew.
void Normalize(const Tensors& t) {
  const Rows r(t, 0);
  const int64_t channels = r.channels;
  const float *x = t.In(0), *gamma = t.In(1), *beta = t.In(2), *moving_mean = t.In(3), *moving_variance = t.In(4);
  const double eps = t.In(5)[0], momentum = t.In(5)[1];
  float *y = t.Out(6), *mean = t.Out(7), *inverse = t.Out(8), *new_mean = t.Out(9), *new_variance = t.Out(10);
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
    new_mean[i] = static_cast<float>(momentum * moving_mean[i] + (1.0 - momentum) * average);
    new_variance[i] = static_cast<float>(momentum * moving_variance[i] + (1.0 - momentum) * unbiased);
  }
  Parallel(r.chunks, [&](int64_t c) {
    const float* from = x + r.first(c) * channels;
    float* to = y + r.first(c) * channels;
    for (int64_t row = 0; row < r.count(c); ++row, from += channels, to += channels) {
      for (int64_t i = 0; i < channels; ++i) to[i] = from[i] * scale[i] + shift[i];
    }
  });
}

// x, dy, gamma, mean, 1 / deviation to dx, dgamma, dbeta.
void NormalizeGradient(const Tensors& t) {
  const Rows r(t, 0);
  const int64_t channels = r.channels;
  const float *x = t.In(0), *dy = t.In(1), *gamma = t.In(2), *mean = t.In(3), *inverse = t.In(4);
  float *dx = t.Out(5), *dgamma = t.Out(6), *dbeta = t.Out(7);
  float* sums = Scratch(kFirst, r.chunks * channels);
  float* products = Scratch(kSecond, r.chunks * channels);
  Parallel(r.chunks, [&](int64_t c) {
    const float *from = x + r.first(c) * channels, *grad = dy + r.first(c) * channels;
    float *s = sums + c * channels, *p = products + c * channels;
    std::fill_n(s, channels, 0.0f);
    std::fill_n(p, channels, 0.0f);
    for (int64_t row = 0; row < r.count(c); ++row, from += channels, grad += channels) {
      for (int64_t i = 0; i < channels; ++i) {
        s[i] += grad[i];
        p[i] += grad[i] * (from[i] - mean[i]);
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
    const float *from = x + r.first(c) * channels, *grad = dy + r.first(c) * channels;
    float* to = dx + r.first(c) * channels;
    for (int64_t row = 0; row < r.count(c); ++row, from += channels, grad += channels, to += channels) {
      for (int64_t i = 0; i < channels; ++i) to[i] = grad[i] * scale[i] + from[i] * factor[i] + shift[i];
    }
  });
}

}  // namespace
}  // namespace ddrnet

DDRNET_OPERATOR(batch_norm, ddrnet::Normalize)
DDRNET_OPERATOR(batch_norm_gradient, ddrnet::NormalizeGradient)
