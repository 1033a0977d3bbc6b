// What the ways to compute a convolution share: its shape, its packed weights, and what happens to its sums.

#pragma once

#include "kernels.h"

namespace ddrnet {

enum Slots { kPanels, kZeros, kTransposed, kProduct, kNarrow, kWinograd };  // of scratch memory

struct Geometry {
  int64_t images, height, width, in, out_height, out_width, out, kernel, stride, top, left;
  int64_t taps() const { return kernel * kernel; }
};

// A vector of which `count` floats are there to read, zero beyond.
inline Vec Load(const float* from, int64_t count) {
  if (count >= kLanes) return *reinterpret_cast<const VecU*>(from);
  Vec vector = {};
  for (int64_t i = 0; i < count; ++i) vector[i] = from[i];
  return vector;
}

// Packed weights, [block of columns][tap][depth][column in the block].
struct Panels {
  Factors factors;
  const float* memory;
  int64_t taps, depth, columns;  // of bfloat16, the depth counts pairs
  int64_t blocks() const { return DivideUp(columns, kBlock); }
  int64_t width(int64_t block) const { return VectorsOf(columns, block) * kLanes; }
  const float* operator[](int64_t block) const { return memory + block * taps * depth * kBlock; }
};

// What is added to a convolution: for each channel of y a bias, for each number of y a shortcut, each or none; then a
// ReLU or none.
struct Finish {
  const float* bias = nullptr;
  const float* shortcut = nullptr;
  bool relu = false;

  // `count` sums, of the channels from `channel` on, to the numbers from `place` on.
  void Apply(const float* sums, int64_t channel, int64_t place, int64_t count, float* out) const;
};

inline void Finish::Apply(const float* sums, int64_t channel, int64_t place, int64_t count, float* out) const {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Vec sum = *reinterpret_cast<const VecU*>(sums + i);
    if (bias) sum += *reinterpret_cast<const VecU*>(bias + channel + i);
    if (shortcut) sum += *reinterpret_cast<const VecU*>(shortcut + place + i);
    *reinterpret_cast<VecU*>(out + place + i) = relu ? Relu(sum) : sum;
  }
  for (; i < count; ++i) {
    const float sum = sums[i] + (bias ? bias[channel + i] : 0) + (shortcut ? shortcut[place + i] : 0);
    out[place + i] = relu && sum < 0 ? 0 : sum;
  }
}

// Convolutions of 3x3 and stride 1 in float32, with fewer multiplications. Panels of kElements taps hold weights that
// are transformed already.
namespace winograd {

constexpr int kElements = 16;

// Whether images of so many rows and columns are convolved faster so.
bool Pays(const Panels& panels, int64_t images, int64_t rows, int64_t columns);

// Weights as the products read them, [block][element][depth][column in the block], into `memory` or scratch memory.
// turned: the taps come in reverse, as the gradient by the input wants them.
Panels Transformed(const Panels& panels, bool turned, float* memory = nullptr);

// out = in * weights, transformed ones. `in` (images, rows, columns, panels.depth) is padded by 1 on every side.
void Multiply(const Panels& panels, int64_t images, int64_t rows, int64_t columns, const float* in, float* out,
              const Finish& finish);

// Whether the weights' gradient is computed faster so, and that: x (images, rows, columns, in), dy (.., out), weights
// (out, in, 3, 3).
bool GradientPays(int64_t images, int64_t rows, int64_t columns, int64_t in, int64_t out);
void WeightGradient(int64_t images, int64_t rows, int64_t columns, int64_t in, int64_t out, const float* x,
                    const float* dy, float* dweight);

}  // namespace winograd
}  // namespace ddrnet
