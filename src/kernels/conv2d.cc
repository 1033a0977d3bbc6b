// Convolution and its two gradients, each as one matrix product whose rows are gathered by pointers.
//
// A row of the product is a pixel of the output, a column an output channel. What a row reads is, tap by tap, the
// channels of one input pixel, which lie together in memory: no image is copied or padded. Weights are packed into
// panels of kBlock columns first.

#include "convolution.h"

#include <cstring>
#include <map>
#include <memory>
#include <tuple>

namespace ddrnet {
namespace {

// MindSpore's "same" puts the odd row and column of padding at the bottom and right (as TensorFlow does); the
// symmetrical padding is kernel / 2 on every side.
int64_t PaddingBefore(int64_t size, int64_t out_size, int64_t kernel, int64_t stride, bool same) {
  if (!same) return kernel / 2;
  return std::max<int64_t>((out_size - 1) * stride + kernel - size, 0) / 2;
}

constexpr int64_t kUnfolded = 3;  // the kernel of convolutions whose weights are packed so

template <int stride, bool same>
Geometry GeometryOf(const Tensors& t, int x, int weight, int y, int64_t kernel = 0) {
  Geometry g{t.Dim(x, 0),
             t.Dim(x, 1),
             t.Dim(x, 2),
             t.Dim(x, 3),
             t.Dim(y, 1),
             t.Dim(y, 2),
             t.Dim(y, 3),
             kernel ? kernel : t.Dim(weight, 2),
             stride,
             0,
             0};
  const int64_t largest = std::max(g.height * g.width * g.in, g.out_height * g.out_width * g.out);
  Require(largest <= INT32_MAX, "conv2d: one image is larger than offsets of 32 bits reach");
  g.top = PaddingBefore(g.height, g.out_height, g.kernel, stride, same);
  g.left = PaddingBefore(g.width, g.out_width, g.kernel, stride, same);
  return g;
}

// Where the rows of a product lie: for each pixel of one image the offset of its output, and for each tap the offset of
// what it reads there; -1: outside, which reads as zero.
struct Gather {
  std::vector<int64_t> taps;  // which taps of the kernel take part
  std::vector<int32_t> out, in;
};

// y = weight * x.
std::vector<Gather> ForwardGathers(const Geometry& g) {
  Gather gather;
  for (int64_t t = 0; t < g.taps(); ++t) gather.taps.push_back(t);
  for (int64_t h = 0; h < g.out_height; ++h) {
    for (int64_t w = 0; w < g.out_width; ++w) {
      gather.out.push_back(static_cast<int32_t>((h * g.out_width + w) * g.out));
      for (int64_t t : gather.taps) {
        const int64_t row = h * g.stride - g.top + t / g.kernel, column = w * g.stride - g.left + t % g.kernel;
        const bool inside = row >= 0 && row < g.height && column >= 0 && column < g.width;
        gather.in.push_back(inside ? static_cast<int32_t>((row * g.width + column) * g.in) : -1);
      }
    }
  }
  return {gather};
}

// dx = weight transposed * dy. A pixel of x meets only the taps of its own residue modulo the stride: one gather each.
std::vector<Gather> InputGradientGathers(const Geometry& g) {
  std::vector<Gather> gathers;
  for (int64_t residue = 0; residue < g.stride * g.stride; ++residue) {
    const int64_t down = residue / g.stride, right = residue % g.stride;
    Gather gather;
    for (int64_t t = 0; t < g.taps(); ++t) {
      if (t / g.kernel % g.stride == down && t % g.kernel % g.stride == right) gather.taps.push_back(t);
    }
    for (int64_t h = 0; h < g.height; ++h) {
      if ((h + g.top) % g.stride != down) continue;
      for (int64_t w = 0; w < g.width; ++w) {
        if ((w + g.left) % g.stride != right) continue;
        gather.out.push_back(static_cast<int32_t>((h * g.width + w) * g.in));
        for (int64_t t : gather.taps) {
          const int64_t row = h + g.top - t / g.kernel, column = w + g.left - t % g.kernel;
          const int64_t y = row / g.stride, x = column / g.stride;
          const bool inside = row >= 0 && y < g.out_height && column >= 0 && x < g.out_width;
          gather.in.push_back(inside ? static_cast<int32_t>((y * g.out_width + x) * g.out) : -1);
        }
      }
    }
    if (!gather.out.empty()) gathers.push_back(std::move(gather));
  }
  return gathers;
}

// The same as sweeps.
tiles::Sweep ForwardSweep(const Geometry& g) {
  tiles::Sweep sweep{g.images,     g.out_height, g.out_width, g.height, g.width, g.stride,
                     g.out_height, g.out_width,  1,           0,        0,       {}};
  for (int64_t t = 0; t < g.taps(); ++t) {
    const int64_t row = t / g.kernel - g.top + g.kernel * g.stride,
                  column = t % g.kernel - g.left + g.kernel * g.stride;
    sweep.taps.push_back({row / g.stride - g.kernel, column / g.stride - g.kernel, row % g.stride, column % g.stride});
  }
  return sweep;
}

tiles::Sweep InputGradientSweep(const Geometry& g, const Gather& gather) {
  // The first pixel of the residue, and how far one is from the next.
  const int64_t first = gather.out[0] / g.in, top = first / g.width, left = first % g.width;
  tiles::Sweep sweep{g.images,
                     DivideUp(g.height - top, g.stride),
                     DivideUp(g.width - left, g.stride),
                     g.out_height,
                     g.out_width,
                     1,
                     g.height,
                     g.width,
                     g.stride,
                     top,
                     left,
                     {}};
  for (int64_t t : gather.taps) {
    const int64_t row = top + g.top - t / g.kernel, column = left + g.left - t % g.kernel;
    sweep.taps.push_back({row / g.stride, column / g.stride, 0, 0});
  }
  return sweep;
}

using Gathers = std::vector<Gather>;

// Gathers follow from the shapes, of which a network has a few dozen; they are made once.
const Gathers& Cached(const Geometry& g, bool forward) {
  using Key = std::tuple<bool, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
  static auto* cache = new std::map<Key, Gathers>;
  const Key key(forward, g.height, g.width, g.in, g.out, g.kernel, g.stride, g.top, g.left);
  auto found = cache->find(key);
  if (found == cache->end()) {
    found = cache->emplace(key, forward ? ForwardGathers(g) : InputGradientGathers(g)).first;
  }
  return found->second;
}

const float* Zeros(int64_t floats) {
  float* zeros = Scratch(floats);
  std::memset(zeros, 0, floats * sizeof(float));
  return zeros;
}

// Rows of pairs from rows of floats: row i of `to` from rows 2 * i and 2 * i + 1 of `from`.
void NarrowRows(const float* from, int64_t pairs, int64_t width, float* to) {
  for (int64_t i = 0; i < pairs; ++i, from += 2 * width, to += width) {
    for (int64_t j = 0; j < width; j += kLanes) {
      *reinterpret_cast<VecU*>(to + j) = Narrow(Load(from + j, kLanes), Load(from + width + j, kLanes));
    }
  }
}

// Floats to pairs of neighbours, in scratch memory.
const float* Narrowed(const float* from, int64_t count) {
  float* to = Scratch(DivideUp(count, 2) + kLanes);
  constexpr int64_t kPiece = 1 << 14;
  Parallel(DivideUp(count, kPiece), [&](int64_t job) {
    const int64_t last = std::min(count, (job + 1) * kPiece);
    for (int64_t i = job * kPiece; i < last; i += kLanes) NarrowTo(to + i / 2, Load(from + i, last - i));
  });
  return to;
}

const float* Widened(const Bfloat16* from, int64_t count) {
  float* to = Scratch(count);
  for (int64_t i = 0; i < count; ++i) to[i] = Widen(from[i]);
  return to;
}

// Weights (out, in, taps) to panels [block of out][tap][in][out in the block], or with `transposed` to
// [block of in][tap][out][in in the block]; of the taps that are listed. Into `memory`, or scratch memory. In the order
// of tiles where `tiles::Serves`.
Panels Pack(Factors factors, const Geometry& g, const float* weight, const std::vector<int64_t>& taps, bool transposed,
            float* memory = nullptr) {
  constexpr int64_t kSlice = 16;  // of the depth, so that what is written at a time stays in the first cache
  const bool pairs = factors == Factors::kBfloat16;
  const int64_t depth = transposed ? g.out : g.in, columns = transposed ? g.in : g.out;
  const int64_t count = static_cast<int64_t>(taps.size()), all = g.taps();
  if (memory == nullptr) {
    memory = Scratch(DivideUp(columns, kBlock) * kBlock * depth * std::max<int64_t>(count, 1));
  }
  const Panels panels{factors, memory, count, pairs ? depth / 2 : depth, columns};
  const bool tiled = tiles::Serves(panels);
  const int64_t slices = DivideUp(depth, kSlice);
  const int64_t over_column = transposed ? all : g.in * all, over_depth = transposed ? g.in * all : all;
  Parallel(panels.blocks() * slices, [&](int64_t job) {
    const int64_t block = job / slices, first = job % slices * kSlice, last = std::min(first + kSlice, depth);
    const int64_t width = panels.width(block), real = std::min<int64_t>(kBlock, columns - block * kBlock);
    float* panel = memory + block * count * panels.depth * kBlock;
    const float* source = weight + block * kBlock * over_column;
    // Row k of tap t goes to rows + (t * span + k - first) * width: into the panel, or aside to be narrowed.
    float* rows = pairs ? ThreadScratch(count * kSlice * width) : panel + first * width;
    const int64_t span = pairs ? last - first : depth;
    if (transposed) {
      for (int64_t k = first; k < last; ++k) {
        for (int64_t t = 0; t < count; ++t) {
          float* to = rows + (t * span + k - first) * width;
          const float* from = source + k * over_depth + taps[t];
          for (int64_t j = 0; j < real; ++j) to[j] = from[j * over_column];
          for (int64_t j = real; j < width; ++j) to[j] = 0;
        }
      }
    } else {  // all taps: rows of weights become columns of the panel
      static thread_local std::vector<int64_t> place;
      const int64_t run = (last - first) * all;
      place.resize(run);
      for (int64_t i = 0; i < run; ++i) place[i] = (i % all * span + i / all) * width;
      for (int64_t j = 0; j < width; j += kLanes) {
        const float* from = source + j * over_column + first * all;
        for (int64_t i = 0; i < run; i += kLanes) {
          Vec square[kLanes];
          for (int64_t lane = 0; lane < kLanes; ++lane) {
            square[lane] = Load(from + lane * over_column + i, j + lane < real ? run - i : 0);
          }
          Transpose(square);
          for (int64_t lane = 0; lane < std::min<int64_t>(kLanes, run - i); ++lane) {
            *reinterpret_cast<VecU*>(rows + place[i + lane] + j) = square[lane];
          }
        }
      }
    }
    for (int64_t t = 0; pairs && t < count; ++t) {
      if (tiled) {
        tiles::NarrowRows(rows + t * span * width, first / 2, span / 2, width, panel + t * panels.depth * width);
      } else {
        NarrowRows(rows + t * span * width, span / 2, width, panel + (t * panels.depth + first / 2) * width);
      }
    }
  });
  return panels;
}

// Copies `count` floats, a handful of vectors.
void Copy(const float* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    *reinterpret_cast<VecU*>(to + i) = *reinterpret_cast<const VecU*>(from + i);
  }
  for (; i < count; ++i) to[i] = from[i];
}

// The rows that `gather` lists for every image, times the panels: from `in` to `out`, whose pixels are
// `panels.columns` floats.
void Multiply(const Gather& gather, int64_t images, const float* in, int64_t image_in, const Panels& panels, void* y,
              int64_t image_out, const Finish& finish) {
  float* out = static_cast<float*>(y);
  const float* shortcut = finish.narrow ? nullptr : static_cast<const float*>(finish.shortcut);
  const int64_t pixels = static_cast<int64_t>(gather.out.size()), taps = panels.taps;
  const int64_t rows = pixels * images, blocks = panels.blocks();
  const float* zeros = Zeros(panels.depth);
  // A job is a chunk of rows, and where there are few of them a part of the columns: enough for all threads. Few rows
  // stay together, so that each of the weights, which are the more then, is read by one thread alone.
  constexpr int64_t kChunk = 8 * kMostRows, kFew = 256;
  const int64_t most = rows <= kFew && blocks >= 2 * Threads() ? rows : std::min(rows, kChunk);
  const int64_t chunks = DivideUp(rows, most), parts = std::min(blocks, DivideUp(8 * Threads(), chunks));
  // Many weights go by slices, of which one is in use and the next one on its way to the second cache.
  constexpr int64_t kSlice = 1 << 17;  // floats
  const int64_t slice = std::clamp<int64_t>(kSlice / (panels.depth * kBlock), 1, std::max<int64_t>(taps, 1));
  Parallel(chunks * parts, [&](int64_t job) {
    const int64_t first = job / parts * most, count = std::min(most, rows - first), part = job % parts;
    const int64_t last = blocks * (part + 1) / parts;
    // Where in `out` each row of the chunk lies, and what each tile's taps read. The rows that fill up the last tile
    // read what the last real one does, and write aside, as do columns that fill up the last vector.
    static thread_local std::vector<const float*> from;
    int64_t place[std::max(kChunk, kFew)];
    float spare[kMostRows * kBlock] = {}, padded_bias[kBlock] = {}, padded_shortcut[kMostRows * kBlock] = {};
    int filled = 0;
    for (int64_t block = blocks * part / parts; block < last; ++block) {
      const int vectors = VectorsOf(panels.columns, block), m = RowsOf(vectors);
      const int64_t real = std::min<int64_t>(kBlock, panels.columns - block * kBlock);
      const bool whole = real == vectors * kLanes && !finish.narrow;
      const float* shortcuts[kMostRows];
      if (finish.bias) std::copy_n(finish.bias + block * kBlock, real, padded_bias);
      if (m != filled) {  // the pointers serve all blocks of one width
        filled = m;
        from.resize(DivideUp(count, m) * m * taps);
        int64_t image = first / pixels, pixel = first % pixels;
        for (int64_t row = 0; row < DivideUp(count, m) * m; ++row) {
          const float* base = in + image * image_in;
          const int32_t* offset = gather.in.data() + pixel * taps;
          const float** to = from.data() + row / m * m * taps + row % m;
          for (int64_t t = 0; t < taps; ++t) to[t * m] = offset[t] < 0 ? zeros : base + offset[t];
          if (row < count) place[row] = image * image_out + gather.out[pixel];
          if (row < count - 1 && ++pixel == pixels) pixel = 0, ++image;
        }
      }
      const int64_t step = whole ? slice : std::max<int64_t>(taps, 1);
      for (int64_t begin = 0; begin < std::max<int64_t>(taps, 1); begin += step) {
        const int64_t end = std::min(begin + step, taps), size = panels.depth * vectors * kLanes;
        Frame frame;
        if (finish.bias && !finish.narrow) frame.start = Frame::Start::kBias, frame.bias = padded_bias;
        if (begin > 0) frame.start = Frame::Start::kOutput;
        frame.relu = finish.relu && end == taps && !finish.narrow;
        if (shortcut && end == taps) frame.shortcut = shortcuts;
        // What comes after this slice, of which each tile of rows fetches a part.
        const float* next = end < taps ? panels[block] + end * size : block + 1 < last ? panels[block + 1] : nullptr;
        const int64_t lines = (end - begin) * panels.depth;
        for (int64_t row = 0; row < count; row += m) {
          float* to[kMostRows];
          for (int i = 0; i < m; ++i) {
            const bool inside = row + i < count;
            const int64_t offset = inside ? place[row + i] + block * kBlock : 0;
            to[i] = whole && inside ? out + offset : spare + i * kBlock;
            if (!frame.shortcut) continue;
            shortcuts[i] = whole && inside ? shortcut + offset : padded_shortcut + i * kBlock;
            if (!whole && inside) std::copy_n(shortcut + offset, real, padded_shortcut + i * kBlock);
          }
          frame.next = next && row / m < vectors ? next + row / m * lines * kLine : nullptr;
          Tile(panels.factors, vectors, from.data() + row * taps + begin * m, end - begin, panels.depth,
               panels[block] + begin * size, to, frame);
          for (int i = 0; !whole && i < m && row + i < count; ++i) {
            const int64_t channel = block * kBlock, at = place[row + i] + channel;
            if (finish.narrow) {
              finish.Apply(spare + i * kBlock, channel, at, real, y);
            } else {
              std::copy_n(spare + i * kBlock, real, out + at);
            }
          }
        }
      }
    }
  });
}

// Pairs need an even number along the sum; the images' three channels stay float32.
Factors Usable(Factors factors, int64_t depth) { return depth % 2 == 0 && kHasBfloat16 ? factors : Factors::kFloat32; }

// A tensor of float32 or bfloat16.
struct Source {
  const void* data;
  bool narrow;

  const float* As(Factors factors, int64_t count) const {  // of which rows are read, in scratch memory where it differs
    const bool pairs = factors == Factors::kBfloat16;
    if (pairs == narrow) return static_cast<const float*>(data);
    return pairs ? Narrowed(static_cast<const float*>(data), count)
                 : Widened(static_cast<const Bfloat16*>(data), count);
  }
};

// What each output pixel reads of a few channels, (tap, channel) side by side, as bfloat16 filled up with zeros to
// `depth` pairs: then the convolution is one of 1x1.
const float* Unfolded(const Geometry& g, const float* x, int64_t depth) {
  float* memory = Scratch(g.images * g.out_height * g.out_width * depth);
  const float* end = x + g.images * g.height * g.width * g.in;
  const int64_t run = g.kernel * g.in, size = 2 * depth;  // what a row of taps reads side by side; numbers of a pixel
  Vec rest = {};                                          // of a vector, those that are of the run
  for (int64_t i = 0; i < std::min<int64_t>(run, kLanes); ++i) rest[i] = 1;
  Parallel(g.images * g.out_height, [&](int64_t job) {
    const int64_t image = job / g.out_height, top = job % g.out_height * g.stride - g.top;
    float* row = ThreadScratch(g.out_width * size + kLanes);
    std::fill_n(row, g.out_width * size + kLanes, 0.0f);
    for (int64_t w = 0; w < g.out_width; ++w) {
      const int64_t left = w * g.stride - g.left;
      const bool within = left >= 0 && left + g.kernel <= g.width && run <= kLanes;
      for (int64_t i = 0; i < g.kernel; ++i) {
        if (top + i < 0 || top + i >= g.height) continue;
        const float* from = x + ((image * g.height + top + i) * g.width + left) * g.in;
        float* to = row + w * size + i * run;
        if (within && from + kLanes <= end) {  // whole vectors: what is beyond the run becomes zero, or the next one's
          const Vec values = *reinterpret_cast<const VecU*>(from);
          *reinterpret_cast<VecU*>(to) = rest > Vec{} ? values : Vec{};
          continue;
        }
        for (int64_t k = 0; k < run; ++k) {
          const int64_t column = left + k / g.in;
          if (column >= 0 && column < g.width) to[k] = from[k];
        }
      }
    }
    float* to = memory + job * g.out_width * depth;
    for (int64_t k = 0; k < g.out_width * size; k += kLanes) {
      NarrowTo(to + k / 2, *reinterpret_cast<const VecU*>(row + k));
    }
  });
  return memory;
}

// `packed`: the weights as `PackOperator` lays them out, or null: they are packed here.
void Forward(Factors factors, const Geometry& g, const Source& x, const float* weight, const float* packed,
             const Finish& finish, void* y) {
  Geometry read = g;  // as the rows are read: in pairs, half as many channels
  if (factors == Factors::kBfloat16) read.in /= 2;
  const Gather& gather = Cached(read, true)[0];
  const Panels panels =
      packed ? Panels{factors, packed, g.taps(), read.in, g.out} : Pack(factors, g, weight, gather.taps, false);
  if (tiles::Serves(panels)) return tiles::Multiply(ForwardSweep(g), x.data, x.narrow, panels, y, finish);
  const float* in = x.As(factors, g.images * g.height * g.width * g.in);
  if (g.stride == 1 && winograd::Pays(panels, g.images, g.height, g.width)) {
    return winograd::Multiply(winograd::Transformed(panels, false), g.images, g.height, g.width, in, y, finish);
  }
  Multiply(gather, g.images, in, g.height * g.width * read.in, panels, y, g.out_height * g.out_width * g.out, finish);
}

void InputGradient(Factors wanted, const Geometry& g, const float* dy, const float* weight, float* dx) {
  const Factors factors = Usable(wanted, g.out);
  Geometry read = g;
  if (factors == Factors::kBfloat16) read.out /= 2;
  const float* in = nullptr;
  for (const Gather& gather : Cached(read, false)) {
    const Panels panels = Pack(factors, g, weight, gather.taps, true);
    if (tiles::Serves(panels)) {
      tiles::Multiply(InputGradientSweep(g, gather), dy, false, panels, dx, {});
      continue;
    }
    if (in == nullptr) in = Source{dy, false}.As(factors, g.images * g.out_height * g.out_width * g.out);
    if (g.stride == 1 && winograd::Pays(panels, g.images, g.height, g.width)) {
      return winograd::Multiply(winograd::Transformed(panels, true), g.images, g.height, g.width, in, dx, {});
    }
    Multiply(gather, g.images, in, g.out_height * g.out_width * read.out, panels, dx, g.height * g.width * g.in, {});
  }
}

// What the taps of the columns [column, column + real) read for the pixels [first, first + count), as a panel of
// count x width, or of half as many rows of pairs, the last one filled up with zeros.
void GatherPanel(Factors factors, const Geometry& g, const Gather& gather, const float* x, const float* zeros,
                 int64_t column, int64_t real, int64_t width, int64_t first, int64_t count, float* panel) {
  const bool pairs = factors == Factors::kBfloat16;
  alignas(64) float two[2 * kBlock] = {};
  const int64_t pixels = g.out_height * g.out_width, taps = g.taps(), image_in = g.height * g.width * g.in;
  int64_t image = first / pixels, pixel = first % pixels;
  for (int64_t p = 0; p < count; ++p) {
    float* row = pairs ? two + p % 2 * width : panel + p * width;
    const float* base = x + image * image_in;
    const int32_t* offsets = gather.in.data() + pixel * taps;
    int64_t tap = column / g.in, channel = column % g.in;
    for (int64_t done = 0; done < real; channel = 0) {
      const int32_t offset = offsets[tap];
      int64_t run = g.in - channel;
      // Taps side by side read numbers side by side: of three channels, one run and not three.
      for (++tap; offset >= 0 && run < real - done && offsets[tap] == offset + channel + run; ++tap) run += g.in;
      run = std::min(run, real - done);
      Copy((offset < 0 ? zeros : base + offset) + channel, run, row + done);
      done += run;
    }
    for (int64_t j = real; j < width; ++j) row[j] = 0;
    if (pairs && p + 1 == count && p % 2 == 0) std::fill_n(two + width, width, 0.0f);
    if (pairs && (p % 2 == 1 || p + 1 == count)) NarrowRows(two, 1, width, panel + p / 2 * width);
    if (++pixel == pixels) pixel = 0, ++image;
  }
}

// The same of bfloat16, `x`, whose channels are a multiple of 2 * kLanes, with zeros up to `filled` rows of pairs.
void GatherPairs(const Geometry& g, const Gather& gather, const float* x, const float* zeros, int64_t column,
                 int64_t real, int64_t width, int64_t first, int64_t count, int64_t filled, float* panel) {
  const int64_t pixels = g.out_height * g.out_width, taps = g.taps(), image_in = g.height * g.width * g.in / 2;
  int64_t image = first / pixels, pixel = first % pixels;
  for (int64_t p = 0; p < count; p += 2) {
    const float* base[2];
    const int32_t* offsets[2];
    for (int i = 0; i < 2; ++i) {
      base[i] = x + image * image_in;
      offsets[i] = p + i < count ? gather.in.data() + pixel * taps : nullptr;
      if (++pixel == pixels) pixel = 0, ++image;
    }
    float* row = panel + p / 2 * width;
    int64_t tap = column / g.in, channel = column % g.in;
    for (int64_t done = 0; done < real; ++tap, channel = 0) {
      const float* from[2];
      for (int i = 0; i < 2; ++i) {
        from[i] = offsets[i] && offsets[i][tap] >= 0 ? base[i] + offsets[i][tap] / 2 + channel / 2 : zeros;
      }
      const int64_t run = std::min(g.in - channel, real - done);
      for (int64_t k = 0; k < run; k += 2 * kLanes) {
        Interleave(from[0] + k / 2, from[1] + k / 2, row + done + k);
      }
      done += run;
    }
  }
  const int64_t there = DivideUp(count, 2);
  std::fill_n(panel + there * width, (filled - there) * width, 0.0f);
}

// The same where the columns are kBlock channels of one tap: where they lie for each pixel.
void GatherPlaces(const Geometry& g, const Gather& gather, const float* x, const float* zeros, int64_t column,
                  int64_t first, int64_t count, const float** places) {
  const int64_t pixels = g.out_height * g.out_width, taps = g.taps(), image_in = g.height * g.width * g.in;
  const int64_t tap = column / g.in, channel = column % g.in;
  int64_t image = first / pixels, pixel = first % pixels;
  for (int64_t p = 0; p < count; ++p) {
    const int32_t offset = gather.in[pixel * taps + tap];
    places[p] = offset < 0 ? zeros : x + image * image_in + offset + channel;
    if (++pixel == pixels) pixel = 0, ++image;
  }
}

// dweight = dy transposed * what the taps read of x. Rows are output channels, columns (tap, input channel), and the
// sum runs over pixels, in chunks that stay in the second cache. It is kept in `groups` parts, so that there is work
// for all threads, which are added up in the end; how many follows from the shapes, so the result does not depend on
// threads.
void WeightGradient(Factors wanted, const Geometry& g, const float* x, const float* dy, float* dweight) {
  constexpr int64_t kChunk = 32 * kLanes, kMostGroups = 16, kJobs = 64;
  const Factors factors = kHasBfloat16 ? wanted : Factors::kFloat32;
  if (factors == Factors::kFloat32 && g.stride == 1 && g.kernel == 3 &&
      winograd::GradientPays(g.images, g.height, g.width, g.in, g.out)) {
    return winograd::WeightGradient(g.images, g.height, g.width, g.in, g.out, x, dy, dweight);
  }
  const bool pairs = factors == Factors::kBfloat16;
  const bool narrow = pairs && g.in % (2 * kLanes) == 0;  // x once, and not tap by tap
  const bool on_tiles = narrow && g.out % kTile == 0 && HasTiles();
  // Tiles are so fast that the sums, which are read and written once a chunk, would take as long as the products.
  const int64_t most = on_tiles ? std::clamp<int64_t>((1 << 18) / g.out / kChunk, 1, 8) * kChunk : kChunk;
  const int64_t stride = (pairs ? most / 2 : most) + kLanes;  // no power of two: rows would compete for one cache set
  if (narrow) x = Narrowed(x, g.images * g.height * g.width * g.in);
  const Gather& gather = Cached(g, true)[0];
  const int64_t rows = g.out_height * g.out_width * g.images, taps = g.taps(), columns = taps * g.in;
  const int64_t blocks = DivideUp(columns, kBlock), size = g.out * columns;
  const int64_t groups = std::clamp<int64_t>(std::min(kJobs / blocks, rows / most), 1, kMostGroups);
  // With few channels, copying what the taps read would take long beside the product, and it lies close together.
  const bool in_place = !pairs && g.in % kBlock == 0 && g.in <= 2 * kBlock;
  const int64_t meeting = most * groups;  // pixels between two meetings of the threads
  const float* zeros = Zeros(std::max(g.in, most));
  float* transposed = Scratch(g.out * groups * stride);
  float* products = Scratch(groups * size);

  for (int64_t begin = 0; begin < rows; begin += meeting) {
    const int64_t end = std::min(begin + meeting, rows), chunks = DivideUp(end - begin, most);
    constexpr int64_t kSlice = 8 * kLanes;
    Parallel(chunks * (most / kSlice), [&](int64_t job) {  // dy of these pixels as [chunk][out][pixel]
      const int64_t c = job / (most / kSlice), slice = job % (most / kSlice) * kSlice;
      const int64_t first = begin + c * most, count = std::min(most, end - first);
      const int64_t last = std::min(slice + kSlice, DivideUp(count, 2 * kTile) * 2 * kTile);
      for (int64_t p = slice; p < last; p += kLanes) {
        for (int64_t o = 0; o < g.out; o += kLanes) {
          Vec square[kLanes];
          const float* corner = dy + (first + p) * g.out + o;
          if (p + kLanes <= count && o + kLanes <= g.out) {
#pragma GCC unroll 16
            for (int64_t lane = 0; lane < kLanes; ++lane) {
              square[lane] = *reinterpret_cast<const VecU*>(corner + lane * g.out);
            }
          } else {
            for (int64_t lane = 0; lane < kLanes; ++lane) {
              square[lane] = Load(corner + lane * g.out, p + lane < count ? g.out - o : 0);
            }
          }
          Transpose(square);
          for (int64_t lane = 0; lane < std::min<int64_t>(kLanes, g.out - o); ++lane) {
            float* to = transposed + (c * g.out + o + lane) * stride;
            if (pairs) {
              NarrowTo(to + p / 2, square[lane]);
            } else {
              *reinterpret_cast<Vec*>(to + p) = square[lane];
            }
          }
        }
      }
    });
    Parallel(blocks * chunks, [&](int64_t job) {
      const int64_t block = job % blocks, c = job / blocks;  // chunk c is group c's
      const int vectors = VectorsOf(columns, block), m = RowsOf(vectors);
      const int64_t width = vectors * kLanes, real = std::min<int64_t>(kBlock, columns - block * kBlock);
      const int64_t first = begin + c * most, count = std::min(most, end - first);
      float* panel = ThreadScratch(most * kBlock);
      float spare[kMostRows * kBlock] = {};
      const float* places[kChunk];
      if (in_place) {
        GatherPlaces(g, gather, x, zeros, block * kBlock, first, count, places);
      } else if (narrow) {
        const int64_t filled = DivideUp(count, 2 * kTile) * kTile;
        GatherPairs(g, gather, x, zeros, block * kBlock, real, width, first, count, filled, panel);
      } else {
        GatherPanel(factors, g, gather, x, zeros, block * kBlock, real, width, first, count, panel);
      }
      const float* chunk = transposed + c * g.out * stride;
      float* product = products + c * size + block * kBlock;
      if (on_tiles) {
        const Tiles processor;
        for (int64_t o = 0; o < g.out; o += 2 * kTile) {
          const TileFactors left{chunk + o * stride, stride, kTile, kTile * stride};
          for (int64_t j = 0; j < real; j += 2 * kTile) {
            const TileFactors right{panel + j, width, kTile * width, kTile};
            processor.Product(o + kTile < g.out ? 2 : 1, j + kTile < real ? 2 : 1, left, right,
                              DivideUp(count, 2 * kTile), product + o * columns + j, columns, begin > 0);
          }
        }
        return;
      }
      for (int64_t o = 0; o < g.out; o += m) {
        const float* from[kMostRows];
        float* to[kMostRows];
        for (int i = 0; i < m; ++i) {
          const bool inside = o + i < g.out;
          from[i] = inside ? chunk + (o + i) * stride : zeros;
          to[i] = inside && real == width ? product + (o + i) * columns : spare + i * kBlock;
          if (inside && real != width) std::copy_n(product + (o + i) * columns, real, to[i]);
        }
        Frame frame;
        if (begin > 0) frame.start = Frame::Start::kOutput;
        if (in_place) {
          IndirectTile(from, count, places, to, frame);
        } else {
          Tile(factors, vectors, from, 1, pairs ? DivideUp(count, 2) : count, panel, to, frame);
        }
        for (int i = 0; real != width && i < m && o + i < g.out; ++i) {
          std::copy_n(to[i], real, product + (o + i) * columns);
        }
      }
    });
  }
  Parallel(g.out, [&](int64_t o) {  // (group, out, tap, in) to (out, in, tap)
    float* to = dweight + o * columns;
    for (int64_t group = 0; group < groups; ++group) {
      const float* from = products + group * size + o * columns;
      for (int64_t t = 0; t < taps; ++t) {
        for (int64_t i = 0; i < g.in; ++i) to[i * taps + t] = (group ? to[i * taps + t] : 0) + from[t * g.in + i];
      }
    }
  });
}

template <int stride, bool same, Factors factors>
void ForwardOperator(const Tensors& t) {  // x, weight to y
  const Geometry g = GeometryOf<stride, same>(t, 0, 1, 2);
  Forward(Usable(factors, g.in), g, {t.In(0), false}, t.In(1), nullptr, {}, t.Out(2));
}

template <int stride, bool same, Factors factors>
void BiasOperator(const Tensors& t) {  // x, weight, bias to y
  const Geometry g = GeometryOf<stride, same>(t, 0, 1, 3);
  Forward(Usable(factors, g.in), g, {t.In(0), false}, t.In(1), nullptr, {t.In(2), nullptr, false}, t.Out(3));
}

// Packed weights in a tensor, which MindSpore may put anywhere: where its first number says they begin, so that they
// lie on lines of the cache. Wherever the tensor has gone since they were put there, they are moved within it.
class Packed {
 public:
  explicit Packed(const Tensors& t, int i) : memory_(t.Out(i)) {
    const int64_t row = t.Dim(i, 1) * t.Dim(i, 2) * t.Dim(i, 3);
    size_ = (t.Dim(i, 0) - DivideUp(2 * kLine, row)) * row;
    Require(size_ > 0, "conv2d: there is no room for packed weights");
  }

  float* Begin() {  // to be filled
    *memory_ = static_cast<float>(Aligned());
    return memory_ + Aligned();
  }

  const float* Get() {
    const auto begin = static_cast<int64_t>(*memory_);
    Require(begin >= 1 && begin <= kLine, "conv2d: these are no packed weights");
    if (begin != Aligned()) {
      std::memmove(memory_ + Aligned(), memory_ + begin, size_ * sizeof(float));
      Begin();
    }
    return memory_ + Aligned();
  }

 private:
  int64_t Aligned() const {  // floats behind the first number
    constexpr uintptr_t bytes = kLine * sizeof(float);
    return static_cast<int64_t>((bytes - reinterpret_cast<uintptr_t>(memory_) % bytes) / sizeof(float));
  }

  float* memory_;
  int64_t size_;
};

// Weights (out, in, k, k) to (out rounded up to kBlock and more, in, k, k), or of bfloat16 (.., in / 2, k, k), or
// transformed for Winograd's algorithm (.., in, 4, 4), whose order is that of the panels; or of bfloat16, of 3x3 and
// few channels, (.., pairs, 1, 1), where the sum runs over taps and channels at once.
void PackOperator(const Tensors& t) {
  Geometry g{};
  g.out = t.Dim(0, 0), g.in = t.Dim(0, 1), g.kernel = t.Dim(0, 2);
  std::vector<int64_t> taps;
  for (int64_t i = 0; i < g.taps(); ++i) taps.push_back(i);
  const bool unfolded = g.kernel == kUnfolded && t.Dim(1, 2) == 1;
  const bool pairs = t.Dim(1, 1) != g.in, transformed = t.Dim(1, 2) == 4 && g.kernel == 3;
  Require(!pairs || kHasBfloat16, "conv2d_pack: this processor has no bfloat16");
  float* to = Packed(t, 1).Begin();
  if (unfolded) {
    const int64_t depth = 2 * t.Dim(1, 1);
    std::vector<float> rows(g.out * depth);  // (out, (tap, in) and zeros)
    for (int64_t i = 0; i < g.out * g.in * g.taps(); ++i) {
      const int64_t out = i / (g.in * g.taps()), in = i / g.taps() % g.in, tap = i % g.taps();
      rows[out * depth + tap * g.in + in] = t.In(0)[i];
    }
    g.in = depth, g.kernel = 1;
    Pack(Factors::kBfloat16, g, rows.data(), {0}, false, to);
  } else if (transformed) {
    Require(g.kernel == 3 && g.in % kLanes == 0 && !pairs, "conv2d_pack: no weights for Winograd's algorithm");
    winograd::Transformed(Pack(Factors::kFloat32, g, t.In(0), taps, false), false, to);
  } else {
    Pack(pairs ? Factors::kBfloat16 : Factors::kFloat32, g, t.In(0), taps, false, to);
  }
}

template <int stride, bool same, bool relu>
void PackedOperator(const Tensors& t) {  // x, packed weights, bias[, shortcut] to y
  const int y = t.count - 1;
  const Geometry g = GeometryOf<stride, same>(t, 0, 1, y);
  const Finish finish{t.In(2), y == 4 ? t.data[3] : nullptr, relu, t.Narrow(y)};
  const Source x{t.data[0], t.Narrow(0)};
  const float* packed = Packed(t, 1).Get();
  const int64_t depth = t.Dim(1, 1);
  Require(kHasBfloat16 || !(x.narrow || finish.narrow), "conv2d_packed: this processor has no bfloat16");
  if (g.taps() == winograd::kElements) {
    const Panels panels{Factors::kFloat32, packed, g.taps(), g.in, g.out};
    const float* in = x.As(Factors::kFloat32, g.images * g.height * g.width * g.in);
    return winograd::Multiply(panels, g.images, g.height, g.width, in, t.data[y], finish);
  }
  if (g.kernel == 1 && depth != g.in && 2 * depth != g.in) {  // unfolded
    Geometry whole = GeometryOf<stride, same>(t, 0, 1, y, kUnfolded), flat = whole;
    const float* in = Unfolded(whole, x.As(Factors::kFloat32, g.images * g.height * g.width * g.in), depth);
    flat.height = g.out_height, flat.width = g.out_width, flat.in = 2 * depth;
    flat.kernel = flat.stride = 1, flat.top = flat.left = 0;
    return Forward(Factors::kBfloat16, flat, {in, true}, nullptr, packed, finish, t.data[y]);
  }
  Forward(depth == g.in ? Factors::kFloat32 : Factors::kBfloat16, g, x, nullptr, packed, finish, t.data[y]);
}

template <int stride, bool same, Factors factors>
void InputGradientOperator(const Tensors& t) {  // dy, weight, x (for its shape alone) to dx
  InputGradient(factors, GeometryOf<stride, same>(t, 2, 1, 0), t.In(0), t.In(1), t.Out(3));
}

template <int stride, bool same, Factors factors>
void WeightGradientOperator(const Tensors& t) {  // x, dy, weight (for its shape alone) to dweight
  WeightGradient(factors, GeometryOf<stride, same>(t, 0, 2, 1), t.In(0), t.In(1), t.Out(3));
}

}  // namespace
}  // namespace ddrnet

#define DDRNET_CONVOLUTION(suffix, stride, same, factors)                                                 \
  DDRNET_OPERATOR(conv2d_##suffix, (ddrnet::ForwardOperator<stride, same, factors>))                      \
  DDRNET_OPERATOR(conv2d_bias_##suffix, (ddrnet::BiasOperator<stride, same, factors>))                    \
  DDRNET_OPERATOR(conv2d_input_gradient_##suffix, (ddrnet::InputGradientOperator<stride, same, factors>)) \
  DDRNET_OPERATOR(conv2d_weight_gradient_##suffix, (ddrnet::WeightGradientOperator<stride, same, factors>))
#define DDRNET_CONVOLUTIONS(suffix, stride, same)                                                   \
  DDRNET_CONVOLUTION(suffix, stride, same, ddrnet::Factors::kFloat32)                               \
  DDRNET_CONVOLUTION(suffix##_bfloat16, stride, same, ddrnet::Factors::kBfloat16)                   \
  DDRNET_OPERATOR(conv2d_packed_##suffix, (ddrnet::PackedOperator<stride, same, false>))            \
  DDRNET_OPERATOR(conv2d_packed_relu_##suffix, (ddrnet::PackedOperator<stride, same, true>))        \
  DDRNET_OPERATOR(conv2d_packed_##suffix##_bfloat16, (ddrnet::PackedOperator<stride, same, false>)) \
  DDRNET_OPERATOR(conv2d_packed_relu_##suffix##_bfloat16, (ddrnet::PackedOperator<stride, same, true>))

DDRNET_CONVOLUTIONS(1, 1, false)
DDRNET_CONVOLUTIONS(2, 2, false)
DDRNET_CONVOLUTIONS(2_same, 2, true)
DDRNET_OPERATOR(conv2d_pack_1, ddrnet::PackOperator)
DDRNET_OPERATOR(conv2d_pack_2, ddrnet::PackOperator)
DDRNET_OPERATOR(conv2d_pack_1_bfloat16, ddrnet::PackOperator)
DDRNET_OPERATOR(conv2d_pack_2_bfloat16, ddrnet::PackOperator)

// Whether bfloat16 is there and worth it: by AVX-512 alone Intel's processors multiply it no faster than float32.
extern "C" int ddrnet_has_bfloat16() {
#if defined(__x86_64__)
  if (__builtin_cpu_is("intel") && !ddrnet::HasTiles()) return 0;
#endif
  return ddrnet::kHasBfloat16;
}
extern "C" int ddrnet_block() { return ddrnet::kBlock; }
