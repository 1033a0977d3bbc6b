// What the ways to compute a convolution share: its shape, its packed weights, and what happens to its sums.

#pragma once

#include "kernels.h"

namespace ddrnet {

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
// ReLU or none. `narrow`: y and the shortcut are of bfloat16, else of float32.
struct Finish {
  const float* bias = nullptr;
  const void* shortcut = nullptr;
  bool relu = false;
  bool narrow = false;

  // `count` sums, of the channels from `channel` on, to the numbers from `place` on.
  void Apply(const float* sums, int64_t channel, int64_t place, int64_t count, void* out) const {
    return narrow ? Apply<Bfloat16>(sums, channel, place, count, out) : Apply<float>(sums, channel, place, count, out);
  }

  // The same of many rows of 2 * kLanes sums each, which go to their places; none where a place is negative.
  void Apply(const float* sums, int64_t rows, int64_t channel, const int64_t* places, void* out) const {
    if (narrow) {
      shortcut ? Rows<Bfloat16, true>(sums, rows, channel, places, out)
               : Rows<Bfloat16, false>(sums, rows, channel, places, out);
    } else {
      shortcut ? Rows<float, true>(sums, rows, channel, places, out)
               : Rows<float, false>(sums, rows, channel, places, out);
    }
  }

 private:
  static Vec Vector(const float* from) { return *reinterpret_cast<const VecU*>(from); }
  static Vec Vector(const Bfloat16* from) { return WidenVector(from); }
  static void Put(float* to, Vec values) { *reinterpret_cast<VecU*>(to) = values; }
  static void Put(Bfloat16* to, Vec values) { NarrowTo(to, values); }

  template <typename Type, bool adds>
  void Rows(const float* sums, int64_t rows, int64_t channel, const int64_t* places, void* y) const {
    const Vec low = bias ? Vector(bias + channel) : Vec{}, high = bias ? Vector(bias + channel + kLanes) : Vec{};
    const Vec least = relu ? Vec{} : Vec{} - __builtin_inff();  // what is below becomes that
    for (int64_t row = 0; row < rows; ++row, sums += 2 * kLanes) {
      if (places[row] < 0) continue;
      Vec first = Vector(sums) + low, second = Vector(sums + kLanes) + high;
      if constexpr (adds) {
        const Type* added = static_cast<const Type*>(shortcut) + places[row] + channel;
        first += Vector(added), second += Vector(added + kLanes);
      }
      Type* out = static_cast<Type*>(y) + places[row] + channel;
      Put(out, first < least ? least : first);
      Put(out + kLanes, second < least ? least : second);
    }
  }

  template <typename Type>
  void Apply(const float* sums, int64_t channel, int64_t place, int64_t count, void* y) const {
    const Type* added = shortcut ? static_cast<const Type*>(shortcut) + place : nullptr;
    Type* out = static_cast<Type*>(y) + place;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      Vec sum = Vector(sums + i);
      if (bias) sum += Vector(bias + channel + i);
      if (added) sum += Vector(added + i);
      Put(out + i, relu ? Relu(sum) : sum);
    }
    for (; i < count; ++i) {
      const float sum = sums[i] + (bias ? bias[channel + i] : 0) + (added ? AsFloat(added[i]) : 0);
      out[i] = FromFloat<Type>(relu && sum < 0 ? 0 : sum);
    }
  }
};

// Products of bfloat16 on tiles: every tap reads pixels that lie side by side, of images copied with zeros around them.
namespace tiles {

// Which pixel a tap reads for the output pixel (h, w) of a sweep: ((h + down) * step + row, (w + right) * step +
// column).
struct Tap {
  int64_t down, right, row, column;
};

// What is computed: for rows x columns pixels of each image, the sum over the taps. The pixel (h, w) lies in the output
// at (h * out_step + out_top, w * out_step + out_left).
struct Sweep {
  int64_t images, rows, columns;
  int64_t in_rows, in_columns, step;
  int64_t out_rows, out_columns, out_step, out_top, out_left;
  std::vector<Tap> taps;
};

// Whether it is so that panels are multiplied; theirs hold tile after tile, [block of columns][tap][kTile of the depth]
// [kTile of the columns][in the depth][in the columns].
bool Serves(const Panels& panels);

// Rows of pairs from rows of floats, 2 * `pairs` of them, into the panel of a tap from its row `first` on.
void NarrowRows(const float* from, int64_t first, int64_t pairs, int64_t width, float* panel);

// in (images, in_rows, in_columns, 2 * panels.depth), of bfloat16 or float32, times the panels.
void Multiply(const Sweep& sweep, const void* in, bool narrow, const Panels& panels, void* out, const Finish& finish);

}  // namespace tiles

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
void Multiply(const Panels& panels, int64_t images, int64_t rows, int64_t columns, const float* in, void* out,
              const Finish& finish);

// Whether the weights' gradient is computed faster so, and that: x (images, rows, columns, in), dy (.., out), weights
// (out, in, 3, 3).
bool GradientPays(int64_t images, int64_t rows, int64_t columns, int64_t in, int64_t out);
void WeightGradient(int64_t images, int64_t rows, int64_t columns, int64_t in, int64_t out, const float* x,
                    const float* dy, float* dweight);

}  // namespace winograd
}  // namespace ddrnet
