#include "resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.h"

// On x86-64 the loops are compiled once for AVX2 and once for any processor, chosen when the program starts; sanitizers
// do not get along with that choice.
#if defined(__x86_64__) && !defined(DDRNET_SANITIZED)
#define DDRNET_VECTORIZED __attribute__((target_clones("avx2", "default")))
#else
#define DDRNET_VECTORIZED
#endif

namespace ddrnet {
namespace {

constexpr int kPrecisionBits = 22;  // 32 bits less 8 of a sample and 2 for sums that overshoot
constexpr double kPi = 3.14159265358979323846;

double Sinc(double x) { return x == 0 ? 1.0 : std::sin(x * kPi) / (x * kPi); }

double Evaluate(Filter filter, double x) {
  const double distance = std::abs(x);
  switch (filter) {
    case Filter::kBilinear: return distance < 1 ? 1 - distance : 0;
    case Filter::kBicubic: {
      // Keys, "Cubic convolution interpolation for digital image processing" (1981), with a = -1/2.
      constexpr double a = -0.5;
      if (distance < 1) return ((a + 2) * distance - (a + 3)) * distance * distance + 1;
      if (distance < 2) return (((distance - 5) * distance + 8) * distance - 4) * a;
      return 0;
    }
    case Filter::kLanczos: return distance < 3 ? Sinc(x) * Sinc(x / 3) : 0;
  }
  return 0;
}

double Support(Filter filter) { return filter == Filter::kBilinear ? 1 : filter == Filter::kBicubic ? 2 : 3; }

// Four channels of a pixel at once; the compiler maps these to SSE, AVX or NEON registers.
typedef int32_t Lanes __attribute__((vector_size(16)));
typedef uint8_t Bytes __attribute__((vector_size(4)));

inline Lanes Load(const uint8_t* pixel) {
  Bytes bytes;
  std::memcpy(&bytes, pixel, sizeof(bytes));
  return __builtin_convertvector(bytes, Lanes);
}

inline void StoreRounded(Lanes sum, uint8_t* pixel) {
  sum >>= kPrecisionBits;
  sum = sum < 0 ? Lanes{} : sum;
  sum = sum > 255 ? Lanes{} + 255 : sum;
  const Bytes bytes = __builtin_convertvector(sum, Bytes);
  std::memcpy(pixel, &bytes, sizeof(bytes));
}

DDRNET_VECTORIZED
void ResampleRow(const uint8_t* source, const AxisWeights& axis, uint8_t* target) {
  const int32_t* weights = axis.weights.data();
  for (const AxisWeights::Run& run : axis.runs) {
    Lanes sum = Lanes{} + (1 << (kPrecisionBits - 1));
    const uint8_t* pixel = source + static_cast<size_t>(run.begin) * 4;
    for (int i = 0; i < run.count; ++i) sum += Load(pixel + static_cast<size_t>(i) * 4) * weights[i];
    StoreRounded(sum, target);
    target += 4;
    weights += axis.stride;
  }
}

DDRNET_VECTORIZED
void ResampleColumns(const uint8_t* source, size_t row_bytes, const int32_t* weights, int count, uint8_t* target) {
  for (size_t x = 0; x < row_bytes; x += 4) {
    Lanes sum = Lanes{} + (1 << (kPrecisionBits - 1));
    for (int i = 0; i < count; ++i) sum += Load(source + x + i * row_bytes) * weights[i];
    StoreRounded(sum, target + x);
  }
}

}  // namespace

Filter FilterByName(const std::string& name) {
  if (name == "bilinear") return Filter::kBilinear;
  if (name == "bicubic") return Filter::kBicubic;
  if (name == "lanczos") return Filter::kLanczos;
  throw UserError("interpolation must be bilinear, bicubic or lanczos, not \"" + name + "\"");
}

AxisWeights ComputeWeights(Filter filter, int size_in, int size_out, int begin, int count) {
  const double scale = static_cast<double>(size_in) / size_out;
  const double stretch = std::max(scale, 1.0);
  const double support = Support(filter) * stretch;
  AxisWeights axis;
  axis.stride = static_cast<int>(std::ceil(support)) * 2 + 1;
  axis.runs.resize(count);
  axis.weights.assign(static_cast<size_t>(count) * axis.stride, 0);
  std::vector<double> exact(axis.stride);
  for (int i = 0; i < count; ++i) {
    const double center = (begin + i + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(center - support + 0.5));
    const int taps = std::min(size_in, static_cast<int>(center + support + 0.5)) - first;
    double total = 0;
    for (int tap = 0; tap < taps; ++tap) {
      exact[tap] = Evaluate(filter, (tap + first - center + 0.5) * (1.0 / stretch));
      total += exact[tap];
    }
    axis.runs[i] = {first, taps};
    for (int tap = 0; tap < taps; ++tap) {
      const double share = total == 0 ? exact[tap] : exact[tap] / total;
      const double scaled = share * (1 << kPrecisionBits);
      axis.weights[static_cast<size_t>(i) * axis.stride + tap] =
          static_cast<int32_t>(scaled + (scaled < 0 ? -0.5 : 0.5));
    }
  }
  return axis;
}

void ResizeAndCrop(const Image& source, Filter filter, int full_width, int full_height, int left, int top, int width,
                   int height, Image* target) {
  const AxisWeights rows = ComputeWeights(filter, source.height, full_height, top, height);
  int first = top, count = height;  // the source rows that the box is made of
  if (full_height != source.height) {
    first = rows.runs.front().begin;
    count = 0;
    for (const AxisWeights::Run& run : rows.runs) count = std::max(count, run.begin + run.count - first);
  }

  Image narrowed;
  narrowed.Allocate(width, count);
  if (full_width != source.width) {
    const AxisWeights columns = ComputeWeights(filter, source.width, full_width, left, width);
    for (int y = 0; y < count; ++y) ResampleRow(source.Row(first + y), columns, narrowed.Row(y));
  } else {
    for (int y = 0; y < count; ++y) {
      std::memcpy(narrowed.Row(y), source.Row(first + y) + static_cast<size_t>(left) * 4,
                  static_cast<size_t>(width) * 4);
    }
  }
  if (full_height == source.height) {
    *target = std::move(narrowed);
    return;
  }

  target->Allocate(width, height);
  for (int y = 0; y < height; ++y) {
    const AxisWeights::Run& run = rows.runs[y];
    ResampleColumns(narrowed.Row(run.begin - first), static_cast<size_t>(width) * 4,
                    rows.weights.data() + static_cast<size_t>(y) * rows.stride, run.count, target->Row(y));
  }
}

}  // namespace ddrnet
