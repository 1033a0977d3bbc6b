// Convolutions of 3x3 and stride 1 with 16 multiplications where 36 would be: F(2x2, 3x3) of Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks" (arXiv 1509.09308, section 4.1), after Winograd.
//
// A tile of 2x2 outputs reads 4x4 inputs d: y = A' [(G g G') * (B' d B)] A, where * goes element by element. Summed
// over the channels, each of the 16 elements is a matrix product of its own: (tiles, in) times (in, out). Its factors
// are exact sums and halves, so that rounding stays close to that of the plain sum.

#include "convolution.h"

namespace ddrnet {
namespace winograd {
namespace {

constexpr int kSide = 4, kOut = 2;
static_assert(kSide * kSide == kElements);

// The tiles of all images, row by row.
struct Grid {
  int64_t images, rows, columns;  // of pixels
  int64_t down() const { return DivideUp(rows, kOut); }
  int64_t across() const { return DivideUp(columns, kOut); }
  int64_t tiles() const { return images * down() * across(); }
  // Whether there is enough to share the transformed weights, and little enough beyond the images' edges.
  bool Pays() const { return tiles() >= 128 && images * rows * columns * 3 >= tiles() * kOut * kOut * 2; }
};

// Where the outputs of a tile begin.
struct Place {
  int64_t image, top, left;
  Place(const Grid& grid, int64_t tile) {
    const int64_t rest = tile % (grid.down() * grid.across());
    image = tile / (grid.down() * grid.across());
    top = rest / grid.across() * kOut, left = rest % grid.across() * kOut;
  }
};

// `side` pixels of a row from column `left` on, kLanes channels each; zero outside.
template <int side>
inline void LoadRow(const Grid& grid, const float* image, int64_t depth, int64_t row, int64_t left, Vec (&d)[side]) {
  const bool there = row >= 0 && row < grid.rows;
  const float* from = image + (row * grid.columns + left) * depth;
  if (there && left >= 0 && left + side <= grid.columns) {
#pragma GCC unroll 4
    for (int j = 0; j < side; ++j) d[j] = *reinterpret_cast<const VecU*>(from + j * depth);
  } else {
    for (int j = 0; j < side; ++j) {
      const bool inside = there && left + j >= 0 && left + j < grid.columns;
      d[j] = inside ? *reinterpret_cast<const VecU*>(from + j * depth) : Vec{};
    }
  }
}

// B' d B of a tile's inputs, in place.
inline void TransformInputs(Vec (&d)[kSide][kSide]) {
#pragma GCC unroll 4
  for (int i = 0; i < kSide; ++i) {
    const Vec d0 = d[i][0], d1 = d[i][1], d2 = d[i][2], d3 = d[i][3];
    d[i][0] = d0 - d2, d[i][1] = d1 + d2, d[i][2] = d2 - d1, d[i][3] = d1 - d3;
  }
#pragma GCC unroll 4
  for (int j = 0; j < kSide; ++j) {
    const Vec d0 = d[0][j], d1 = d[1][j], d2 = d[2][j], d3 = d[3][j];
    d[0][j] = d0 - d2, d[1][j] = d1 + d2, d[2][j] = d2 - d1, d[3][j] = d1 - d3;
  }
}

// G g G' of 3x3 weights.
inline void TransformWeights(const Vec (&g)[3][3], Vec (&u)[kSide][kSide]) {
  Vec rows[kSide][3];
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
    const Vec outer = (g[0][j] + g[2][j]) * 0.5f, middle = g[1][j] * 0.5f;
    rows[0][j] = g[0][j], rows[1][j] = outer + middle, rows[2][j] = outer - middle, rows[3][j] = g[2][j];
  }
#pragma GCC unroll 4
  for (int i = 0; i < kSide; ++i) {
    const Vec outer = (rows[i][0] + rows[i][2]) * 0.5f, middle = rows[i][1] * 0.5f;
    u[i][0] = rows[i][0], u[i][1] = outer + middle, u[i][2] = outer - middle, u[i][3] = rows[i][2];
  }
}

// A' m A of a tile's products.
inline void TransformProducts(const Vec (&m)[kSide][kSide], Vec (&y)[kOut][kOut]) {
  Vec rows[kOut][kSide];
#pragma GCC unroll 4
  for (int j = 0; j < kSide; ++j) {
    const Vec sum = m[1][j] + m[2][j], difference = m[1][j] - m[2][j];
    rows[0][j] = m[0][j] + sum, rows[1][j] = difference - m[3][j];
  }
#pragma GCC unroll 2
  for (int i = 0; i < kOut; ++i) {
    y[i][0] = rows[i][0] + rows[i][1] + rows[i][2], y[i][1] = rows[i][1] - rows[i][2] - rows[i][3];
  }
}

// Row `e` of B' d B: the row, and what each of its elements is made of.
inline void TransformInputRow(const Vec (&top)[kSide], const Vec (&bottom)[kSide], bool sum, Vec (&row)[kSide]) {
  Vec d[kSide];
#pragma GCC unroll 4
  for (int j = 0; j < kSide; ++j) d[j] = sum ? top[j] + bottom[j] : top[j] - bottom[j];
  row[0] = d[0] - d[2], row[1] = d[1] + d[2], row[2] = d[2] - d[1], row[3] = d[1] - d[3];
}

// G' u G of the gradient of transformed weights.
inline void TransformWeightGradient(const Vec (&u)[kSide][kSide], Vec (&g)[3][3]) {
  Vec rows[3][kSide];
#pragma GCC unroll 4
  for (int j = 0; j < kSide; ++j) {
    const Vec sum = (u[1][j] + u[2][j]) * 0.5f;
    rows[0][j] = u[0][j] + sum, rows[1][j] = (u[1][j] - u[2][j]) * 0.5f, rows[2][j] = sum + u[3][j];
  }
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    const Vec sum = (rows[i][1] + rows[i][2]) * 0.5f;
    g[i][0] = rows[i][0] + sum, g[i][1] = (rows[i][1] - rows[i][2]) * 0.5f, g[i][2] = sum + rows[i][3];
  }
}

}  // namespace

bool Pays(const Panels& panels, int64_t images, int64_t rows, int64_t columns) {
  if (panels.factors != Factors::kFloat32 || panels.taps != 9 || panels.depth % kLanes != 0) return false;
  return Grid{images, rows, columns}.Pays();
}

Panels Transformed(const Panels& panels, bool turned, float* memory) {
  constexpr int64_t kSlice = 16;
  const int64_t depth = panels.depth, slices = DivideUp(depth, kSlice), size = kElements * depth * kBlock;
  if (memory == nullptr) memory = Scratch(panels.blocks() * size);
  Parallel(panels.blocks() * slices, [&](int64_t job) {
    const int64_t block = job / slices, first = job % slices * kSlice, width = panels.width(block);
    for (int64_t k = first; k < std::min(first + kSlice, depth); ++k) {
      for (int64_t j = 0; j < width; j += kLanes) {
        const float* from = panels[block] + k * width + j;
        Vec g[3][3], u[kSide][kSide];
        for (int t = 0; t < 9; ++t) {
          g[t / 3][t % 3] = *reinterpret_cast<const VecU*>(from + (turned ? 8 - t : t) * depth * width);
        }
        TransformWeights(g, u);
        float* to = memory + block * size + k * width + j;
        for (int e = 0; e < kElements; ++e) *reinterpret_cast<VecU*>(to + e * depth * width) = u[e / kSide][e % kSide];
      }
    }
  });
  return {Factors::kFloat32, memory, kElements, depth, panels.columns};
}

void Multiply(const Panels& panels, int64_t images, int64_t rows, int64_t columns, const float* in, void* out,
              const Finish& finish) {
  constexpr int64_t kMost = 48;  // tiles that a job takes, whose factors and products stay in the second cache
  const Grid grid{images, rows, columns};
  const int64_t depth = panels.depth, blocks = panels.blocks(), tiles = grid.tiles();
  const int64_t even = DivideUp(tiles, DivideUp(DivideUp(tiles, kMost), Threads()) * Threads());
  const int64_t chunk = std::min(kMost, DivideUp(even, kRowsOfWidest) * kRowsOfWidest);
  // Not a power of two: the elements of a tile would compete for one set of the cache.
  const int64_t factor_size = kMost * depth + kLanes, product_size = kMost * kBlock + kLanes;
  Parallel(DivideUp(tiles, chunk), [&](int64_t job) {
    const int64_t first = job * chunk, count = std::min(chunk, tiles - first);
    float* factors = ThreadScratch(kElements * (factor_size + product_size));
    float* products = factors + kElements * factor_size;
    for (int64_t tile = 0; tile < count; ++tile) {
      const Place at(grid, first + tile);
      const float* image = in + at.image * rows * columns * depth;
      for (int64_t k = 0; k < depth; k += kLanes) {
        Vec d[kSide][kSide];
#pragma GCC unroll 4
        for (int i = 0; i < kSide; ++i) LoadRow(grid, image + k, depth, at.top - 1 + i, at.left - 1, d[i]);
        TransformInputs(d);
        float* to = factors + tile * depth + k;
#pragma GCC unroll 16
        for (int e = 0; e < kElements; ++e) {
          *reinterpret_cast<VecU*>(to + e * factor_size) = d[e / kSide][e % kSide];
        }
      }
    }
    for (int64_t block = 0; block < blocks; ++block) {
      const int vectors = VectorsOf(panels.columns, block), m = RowsOf(vectors);
      const int64_t width = vectors * kLanes;
      for (int e = 0; e < kElements; ++e) {
        const float* panel = panels[block] + e * depth * width;
        const bool last = e + 1 == kElements && block + 1 == blocks;
        const float* next = last ? panel : e + 1 < kElements ? panel + depth * width : panels[block + 1];
        for (int64_t tile = 0; tile < count; tile += m) {
          const float* from[kMostRows];
          float* to[kMostRows];
          for (int i = 0; i < m; ++i) {  // those that fill up the last rows repeat the last tile
            const int64_t row = std::min(tile + i, count - 1);
            from[i] = factors + e * factor_size + row * depth;
            to[i] = products + e * product_size + row * width;
          }
          Frame frame;
          if (tile / m < vectors) frame.next = next + tile / m * depth * kLine;
          Tile(Factors::kFloat32, vectors, from, 1, depth, panel, to, frame);
        }
      }
      const int64_t channel = block * kBlock, real = std::min<int64_t>(kBlock, panels.columns - channel);
      for (int64_t tile = 0; tile < count; ++tile) {
        const Place at(grid, first + tile);
        const float* from = products + tile * width;
        for (int64_t j = 0; j < width; j += kLanes) {
          Vec m[kSide][kSide], y[kOut][kOut];
#pragma GCC unroll 16
          for (int e = 0; e < kElements; ++e) {
            m[e / kSide][e % kSide] = *reinterpret_cast<const VecU*>(from + e * product_size + j);
          }
          TransformProducts(m, y);
          for (int64_t i = 0; i < std::min<int64_t>(kOut, rows - at.top); ++i) {
            for (int64_t k = 0; k < std::min<int64_t>(kOut, columns - at.left); ++k) {
              const int64_t pixel = (at.image * rows + at.top + i) * columns + at.left + k;
              const int64_t place = pixel * panels.columns + channel + j;
              alignas(64) float sums[kLanes];
              *reinterpret_cast<Vec*>(sums) = y[i][k];
              finish.Apply(sums, channel + j, place, std::min<int64_t>(kLanes, real - j), out);
            }
          }
        }
      }
    }
  });
}

bool GradientPays(int64_t images, int64_t rows, int64_t columns, int64_t in, int64_t out) {
  return in % kLanes == 0 && out % kLanes == 0 && Grid{images, rows, columns}.Pays();
}

// The gradient by the transformed weights is for each element a matrix product again, (out, tiles) times (tiles, in).
// A job takes one row of the elements, of one group of the tiles: so its factors and sums stay in its second cache. How
// many groups there are follows from the shapes, so that the result does not depend on threads.
void WeightGradient(int64_t images, int64_t rows, int64_t columns, int64_t in, int64_t out, const float* x,
                    const float* dy, float* dweight) {
  constexpr int64_t kFactors = 1 << 17, kSums = 1 << 16;  // floats of a chunk's factors; of the weights of all groups
  static constexpr int kFirst[kSide] = {0, 1, 2, 1},
                       kSecond[kSide] = {2, 2, 1, 3};  // B': rows that it subtracts or adds
  const Grid grid{images, rows, columns};
  const int64_t tiles = grid.tiles(), blocks = DivideUp(in, kBlock);
  const int64_t groups = in * out > kSums ? 1 : std::clamp<int64_t>(kSums / (in * out), 2, 8);
  const int64_t share = DivideUp(DivideUp(tiles, groups), kLanes) * kLanes;
  const int64_t fitting = std::max(kFactors, 2 * in * out) / (kSide * (in + out)) / kLanes * kLanes;
  const int64_t chunk = std::clamp<int64_t>(fitting, kLanes, share);
  // No powers of two: the elements of a tile would compete for one set of the cache.
  const int64_t left_row = chunk + kLine, left_size = out * left_row, right_size = chunk * in + kLine;
  const int64_t size = out * in + kLine;
  float* products = Scratch(groups * kElements * size);  // [group][element][out][in]
  Parallel(groups * kSide, [&](int64_t job) {
    const int64_t group = job / kSide, element = job % kSide;
    const int64_t until = std::min((group + 1) * share, tiles);
    float* sums = products + (group * kElements + element * kSide) * size;
    float* left = ThreadScratch(kSide * (left_size + right_size));  // [element][out][tile]
    float* right = left + kSide * left_size;                        // [element][block of in][tile][in in the block]
    if (group * share >= until) std::fill_n(sums, kSide * size, 0.0f);
    for (int64_t begin = group * share; begin < until; begin += chunk) {
      const int64_t count = std::min(chunk, until - begin);
      for (int64_t tile = 0; tile < count; ++tile) {
        const Place at(grid, begin + tile);
        const float* image = x + at.image * rows * columns * in;
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t width = VectorsOf(in, block) * kLanes;
          float* to = right + block * kBlock * chunk + tile * width;
          for (int64_t j = 0; j < width; j += kLanes) {
            Vec first[kSide], second[kSide], row[kSide];
            LoadRow(grid, image + block * kBlock + j, in, at.top - 1 + kFirst[element], at.left - 1, first);
            LoadRow(grid, image + block * kBlock + j, in, at.top - 1 + kSecond[element], at.left - 1, second);
            TransformInputRow(first, second, element == 1, row);
#pragma GCC unroll 4
            for (int e = 0; e < kSide; ++e) *reinterpret_cast<VecU*>(to + e * right_size + j) = row[e];
          }
        }
      }
      for (int64_t first = 0; first < count; first += kLanes) {
        for (int64_t o = 0; o < out; o += kLanes) {
          Vec squares[kSide][kLanes] = {};
          for (int64_t tile = first; tile < std::min(first + kLanes, count); ++tile) {  // a row of A dy A'
            const Place at(grid, begin + tile);
            const float* image = dy + at.image * rows * columns * out + o;
            Vec top[kOut] = {}, bottom[kOut] = {};
            if (element < 3) LoadRow(grid, image, out, at.top, at.left, top);
            if (element > 0) LoadRow(grid, image, out, at.top + 1, at.left, bottom);
            Vec d[kOut];
#pragma GCC unroll 2
            for (int j = 0; j < kOut; ++j) d[j] = element == 1 ? top[j] + bottom[j] : top[j] - bottom[j];
            squares[0][tile - first] = d[0], squares[1][tile - first] = d[0] + d[1];
            squares[2][tile - first] = d[0] - d[1], squares[3][tile - first] = -d[1];
          }
          for (int e = 0; e < kSide; ++e) {
            Transpose(squares[e]);
            float* to = left + e * left_size + o * left_row + first;
#pragma GCC unroll 16
            for (int lane = 0; lane < kLanes; ++lane) {
              *reinterpret_cast<VecU*>(to + lane * left_row) = squares[e][lane];
            }
          }
        }
      }
      Frame frame;
      if (begin > group * share) frame.start = Frame::Start::kOutput;
      float spare[kMostRows * kBlock] = {};
      for (int e = 0; e < kSide; ++e) {
        for (int64_t block = 0; block < blocks; ++block) {
          const int vectors = VectorsOf(in, block), m = RowsOf(vectors);
          for (int64_t o = 0; o < out; o += m) {
            const float* from[kMostRows];
            float* to[kMostRows];
            for (int i = 0; i < m; ++i) {
              from[i] = left + e * left_size + std::min(o + i, out - 1) * left_row;
              to[i] = o + i < out ? sums + e * size + (o + i) * in + block * kBlock : spare + i * kBlock;
            }
            Tile(Factors::kFloat32, vectors, from, 1, count, right + e * right_size + block * kBlock * chunk, to,
                 frame);
          }
        }
      }
    }
  });
  Parallel(out, [&](int64_t o) {
    for (int64_t c = 0; c < in; c += kLanes) {
      Vec u[kSide][kSide], g[3][3];
      for (int e = 0; e < kElements; ++e) {
        const float* from = products + e * size + o * in + c;
        Vec sum = *reinterpret_cast<const VecU*>(from);
        for (int64_t group = 1; group < groups; ++group) {
          sum += *reinterpret_cast<const VecU*>(from + group * kElements * size);
        }
        u[e / kSide][e % kSide] = sum;
      }
      TransformWeightGradient(u, g);
      float* to = dweight + (o * in + c) * 9;
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int t = 0; t < 9; ++t) to[lane * 9 + t] = g[t / 3][t % 3][lane];
      }
    }
  });
}

}  // namespace winograd
}  // namespace ddrnet
