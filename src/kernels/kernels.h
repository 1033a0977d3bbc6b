// What the operators share: vectors of the processor at hand, threads, scratch memory, and the one kernel in which a
// training run spends its time.
//
// Tensors are float32 in NHWC order (channels last), weights as MindSpore holds them, (out, in, height, width).

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace ddrnet {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kAccumulators = 24, kMostVectors = 4;
#elif defined(__AVX__)
constexpr int kLanes = 8, kAccumulators = 12, kMostVectors = 2;
#else
constexpr int kLanes = 4, kAccumulators = 24, kMostVectors = 4;
#endif
typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef float VecU __attribute__((vector_size(kLanes * 4), aligned(4)));  // anywhere in memory

// The bits of one number in all lanes. Not an addition: a pair of bfloat16 may look like a denormal number.
template <int... lane>
inline Vec BroadcastTo(float value, std::integer_sequence<int, lane...>) {
  return Vec{((void)lane, value)...};
}
inline Vec Broadcast(float value) { return BroadcastTo(value, std::make_integer_sequence<int, kLanes>{}); }

inline Vec Relu(Vec value) { return value < Vec{} ? Vec{} : value; }  // what is not a number stays none

constexpr int kLine = 16;                      // floats in a line of the cache
constexpr int kBlock = kMostVectors * kLanes;  // columns that a tile computes at once

// Rows of a tile that is `vectors` wide: as many as the registers hold.
constexpr int RowsOf(int vectors) { return std::min(12, kAccumulators / vectors); }
constexpr int kMostRows = RowsOf(1), kRowsOfWidest = RowsOf(kMostVectors);

constexpr int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the code below it relies on; where it does not hold, the operator fails with these words.
inline void Require(bool holds, const char* what) {
  if (__builtin_expect(!holds, 0)) throw std::logic_error(what);
}

// The columns of block `block` of `columns`, rounded up to whole vectors, as vectors.
inline int VectorsOf(int64_t columns, int64_t block) {
  return static_cast<int>(DivideUp(std::min<int64_t>(kBlock, columns - block * kBlock), kLanes));
}

// Transposes kLanes vectors as a square matrix, in log2(kLanes) rounds of exchanging ever larger squares.
inline void Transpose(Vec (&square)[kLanes]) {
#if defined(__clang__)  // has no shuffle by a vector; it makes its own of this
  Vec turned[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) turned[i][j] = square[j][i];
  }
  std::copy_n(turned, kLanes, square);
#else
  typedef int32_t Index __attribute__((vector_size(kLanes * 4)));
#pragma GCC unroll 4
  for (int half = 1; half < kLanes; half *= 2) {
    Index even, odd;  // of two rows, the lanes that each keeps and those that it takes from the other
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      even[i] = i & half ? i - half + kLanes : i;
      odd[i] = i & half ? i + kLanes : i + half;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & half) continue;
      const Vec a = square[i], b = square[i + half];
      square[i] = __builtin_shuffle(a, b, even);
      square[i + half] = __builtin_shuffle(a, b, odd);
    }
  }
#endif
}

// What is multiplied: float32, or pairs of bfloat16 in the place of one float32 each, whose products are added up in
// float32. Pairs are neighbours along the sum.
enum class Factors { kFloat32, kBfloat16 };

using Bfloat16 = uint16_t;  // the upper half of a float32

inline float Widen(Bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
inline Bfloat16 Narrow(float value) {  // to the nearest, of two the even one; what is not a number stays none
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<Bfloat16>(bits >> 16 | 0x40);
  return static_cast<Bfloat16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Numbers of tensors of either type.
inline float AsFloat(float value) { return value; }
inline float AsFloat(Bfloat16 value) { return Widen(value); }
template <typename Type>
inline Type FromFloat(float value) {
  if constexpr (std::is_same_v<Type, float>)
    return value;
  else
    return Narrow(value);
}

#if defined(__AVX512BF16__)
constexpr bool kHasBfloat16 = true;
inline Vec WidenVector(const Bfloat16* from) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}
inline Vec Narrow(Vec low, Vec high) {  // two vectors to one of their pairs
  const __m512i even = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
  const __m512i odd = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high));
  return (Vec)_mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}
inline void NarrowTo(void* to, Vec values) {  // kLanes neighbours to kLanes / 2 pairs
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(values));
}
inline Vec AddProducts(Vec sum, Vec a, Vec b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
// Of two vectors of 2 * kLanes bfloat16 each, the pairs (first's, second's), in two vectors.
inline void Interleave(const float* first, const float* second, float* to) {
  alignas(64) static constexpr auto index = [] {
    std::array<uint16_t, 64> places{};
    for (int i = 0; i < 64; ++i) places[i] = static_cast<uint16_t>(i / 2 + i % 2 * 32);
    return places;
  }();
  const __m512i a = _mm512_loadu_si512(first), b = _mm512_loadu_si512(second);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, _mm512_loadu_si512(index.data()), b));
  _mm512_storeu_si512(to + kLanes, _mm512_permutex2var_epi16(a, _mm512_loadu_si512(index.data() + 32), b));
}
#else
constexpr bool kHasBfloat16 = false;
inline Vec Narrow(Vec, Vec) { return Vec{}; }
inline void NarrowTo(void*, Vec) {}
inline Vec WidenVector(const Bfloat16*) { return Vec{}; }
inline Vec AddProducts(Vec sum, Vec, Vec) { return sum; }
inline void Interleave(const float*, const float*, float*) {}
#endif

// What a tile begins with, and what happens to it in the end.
struct Frame {
  enum class Start { kZero, kBias, kOutput } start = Start::kZero;  // zero, the bias, or what `out` holds
  const float* bias = nullptr;                                      // one for each column
  const float* const* shortcut = nullptr;                           // for each row what is added to it, or none
  bool relu = false;
  const float* next = nullptr;  // what will be read soon: one line of the cache for each step of the sum is fetched
};

// The kernel: a tile of RowsOf(vectors) rows and `vectors` vectors of columns,
//   out[i][j] = frame's start + sum over t < taps, k < depth of rows[t * RowsOf(vectors) + i][k] * panel[(t * depth +
//   k) * width + j]
// with width = vectors * kLanes. All accumulators stay in registers.
//   rows: for every tap, a pointer for each row of the tile: an indirect convolution (Dukhan, arXiv 1907.02129)
//   panel: best aligned to a vector
// Of bfloat16, rows and panel hold pairs, and depth counts them.
void Tile(Factors factors, int vectors, const float* const* rows, int64_t taps, int64_t depth, const float* panel,
          float* const* out, const Frame& frame);

// The same in float32 and of one tap, with the row of the panel for each k where columns[k] says; kMostVectors wide.
void IndirectTile(const float* const* rows, int64_t depth, const float* const* columns, float* const* out,
                  const Frame& frame);

// Products of bfloat16 on the tiles of Intel's AMX, where the processor has them and the system grants them.
constexpr int kTile = 16;  // rows of a tile, its columns of sums, and its pairs along the sum
bool HasTiles();

// Where the factors of two tiles, side by side, lie for every step of kTile pairs along the sum; all in floats. The sum
// may have parts, of `steps` steps each, which lie anywhere among the rows' factors and one behind the other among the
// columns'.
struct TileFactors {
  const float* memory;
  int64_t stride;                    // from a row of a tile to the next one
  int64_t step;                      // from a step to the next one
  int64_t next;                      // from the first tile to the second
  const int64_t* offsets = nullptr;  // of the rows' factors: where each of `parts` parts of the sum begins, or at 0
  int64_t parts = 1;
  const float* ahead = nullptr;  // of the columns': factors of two tiles that will be read soon, as far apart, of which
  int from = 0, to = 0;          // these rows of each step are fetched
};

// Holds the calling thread's tiles. `Product` computes sums of down x across tiles, 1 or 2 each, whose rows are
// `stride` floats apart: of the rows' factors (row, pair) and the columns' factors (pair, column), added to what `out`
// holds or not.
class Tiles {
 public:
  Tiles();
  ~Tiles();
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  void Product(int down, int across, const TileFactors& rows, const TileFactors& columns, int64_t steps, float* out,
               int64_t stride, bool onto) const;
};

// Calls work(i) for i in [0, count) from all threads of the process; returns when all are done. Which thread takes
// which i is open, so what a call computes must not depend on it. One operator at a time has the threads. What one of
// the calls throws is thrown here, when all threads have left, and the calls that had not begun are left out.
void Parallel(int64_t count, const std::function<void(int64_t)>& work);
int Threads();

// Memory until the operator ends, aligned to a cache line, contents undefined. Only between the start and the end of
// `Exclusive`, from its thread.
float* Scratch(int64_t floats);

// The same, of the calling thread alone, until its next call.
float* ThreadScratch(int64_t floats);

// Holds threads and scratch for one operator, in which denormal numbers count as zero: they are slow, and whether they
// do must not depend on the thread.
class Exclusive {
 public:
  Exclusive();
  ~Exclusive();

 private:
  unsigned mode_;
};

// How MindSpore hands tensors to an operator: inputs, of which some may be written to, then outputs.
struct Tensors {
  int count;
  void** data;
  const int* ranks;
  int64_t** shapes;
  const char** types;
  const float* In(int i) const { return static_cast<const float*>(data[i]); }
  float* Out(int i) const { return static_cast<float*>(data[i]); }
  // Whether tensor i is of bfloat16; else it is of float32. Of operators with one output alone.
  bool Narrow(int i) const { return std::strcmp(types[i], "bfloat16") == 0; }
  int64_t Dim(int i, int axis) const { return shapes[i][axis]; }
  int64_t Size(int i) const {
    int64_t size = 1;
    for (int axis = 0; axis < ranks[i]; ++axis) size *= shapes[i][axis];
    return size;
  }
};

}  // namespace ddrnet

// Runs an operator: 0, or where it throws 1, of which MindSpore makes a RuntimeError, with the reason on standard
// error.
namespace ddrnet {
int Run(const char* name, void (*call)(const Tensors&), const Tensors& tensors) noexcept;
}  // namespace ddrnet

// Defines an operator that MindSpore's Custom(func_type="aot") loads by its name.
#define DDRNET_OPERATOR(name, ...)                                                                              \
  extern "C" int name(int count, void** data, int* ranks, int64_t** shapes, const char** types, void*, void*) { \
    return ddrnet::Run(#name, __VA_ARGS__, ddrnet::Tensors{count, data, ranks, shapes, types});                 \
  }
