// Convolutions in bfloat16 on the tiles of the processor.

#include "convolution.h"

#include <cstring>

namespace ddrnet {
namespace tiles {
namespace {

// A tap's pixels lie `step` apart in the image; copied, those of each of its step x step residues lie side by side, as
// a plane of its own. Rows of a plane follow each other with as many zeros between them as taps reach beyond an edge:
// so pixels in a row read, for every tap, numbers at one distance, also over the end of an image's row.
struct Planes {
  const Sweep& sweep;
  int64_t depth;                  // of a pixel, in floats
  int64_t height;                 // output rows at once
  int64_t pitch;                  // pixels from a row to the next
  int64_t up = 0, lead = 0;       // rows and pixels that taps reach before the first; `lead` also behind the last
  int64_t high, reach;            // rows of a plane; pixels of its rows that are read and no zeros
  std::vector<int64_t> residues;  // the planes that there are, row * step + column
  std::vector<int64_t> offset;    // of each tap, in floats, from that of the output pixel

  Planes(const Sweep& s, int64_t depth, int64_t height) : sweep(s), depth(depth), height(height) {
    int64_t below = 0, trail = 0;
    for (const Tap& tap : s.taps) {
      up = std::max(up, -tap.down), below = std::max(below, tap.down);
      lead = std::max(lead, -tap.right), trail = std::max(trail, tap.right);
      const int64_t residue = tap.row * s.step + tap.column;
      if (std::find(residues.begin(), residues.end(), residue) == residues.end()) residues.push_back(residue);
    }
    reach = s.columns;
    for (int64_t residue : residues) reach = std::max(reach, std::min(Columns(residue), s.columns + trail));
    lead = std::max(lead, trail);
    pitch = reach + lead, high = height + up + below;
    for (const Tap& tap : s.taps) {
      const auto plane = std::find(residues.begin(), residues.end(), tap.row * s.step + tap.column) - residues.begin();
      offset.push_back((plane * Pixels() + (up + tap.down) * pitch + lead + tap.right) * Pixel());
    }
  }

  // Pixels that a row of a plane has in the image.
  int64_t Columns(int64_t residue) const { return DivideUp(sweep.in_columns - residue % sweep.step, sweep.step); }
  int64_t Pixel() const { return depth + kLine; }  // floats; no power of two, so that a tile's rows share no cache set
  int64_t Pixels() const { return high * pitch + 2 * lead; }
  int64_t Flat() const { return DivideUp(height * pitch, kTile) * kTile; }  // output pixels, with the gaps
  int64_t Size() const { return (static_cast<int64_t>(residues.size()) * Pixels() + kTile) * Pixel(); }

  void Copy(const void* image, bool narrow, int64_t top, float* to) const;
};

// The rows of an image that the output rows from `top` on read.
void Planes::Copy(const void* image, bool narrow, int64_t top, float* to) const {
  const int64_t pixel = Pixel(), channels = 2 * depth;
  for (int64_t residue : residues) {
    const int64_t row0 = residue / sweep.step, column0 = residue % sweep.step;
    std::memset(to, 0, lead * pixel * sizeof(float));
    to += lead * pixel;
    for (int64_t y = 0; y < high; ++y) {
      const int64_t row = (top + y - up) * sweep.step + row0;
      const int64_t there = row < 0 || row >= sweep.in_rows ? 0 : std::min(reach, Columns(residue));
      const int64_t first = (row * sweep.in_columns + column0) * channels, apart = sweep.step * channels;
      for (int64_t x = 0; x < there; ++x) {
        if (narrow) {
          const auto* from = reinterpret_cast<const float*>(static_cast<const Bfloat16*>(image) + first + x * apart);
          for (int64_t k = 0; k < depth; k += kLanes) {
            *reinterpret_cast<VecU*>(to + x * pixel + k) = *reinterpret_cast<const VecU*>(from + k);
          }
        } else {
          const float* from = static_cast<const float*>(image) + first + x * apart;
          for (int64_t k = 0; k < channels; k += kLanes) {
            NarrowTo(to + x * pixel + k / 2, *reinterpret_cast<const VecU*>(from + k));
          }
        }
      }
      std::memset(to + there * pixel, 0, (pitch - there) * pixel * sizeof(float));
      to += pitch * pixel;
    }
    std::memset(to, 0, lead * pixel * sizeof(float));
    to += lead * pixel;
  }
}

}  // namespace

bool Serves(const Panels& panels) {
  return panels.factors == Factors::kBfloat16 && panels.depth % kTile == 0 && HasTiles();
}

void NarrowRows(const float* from, int64_t first, int64_t pairs, int64_t width, float* panel) {
  for (int64_t row = first; row < first + pairs; ++row, from += 2 * width) {
    float* to = panel + row / kTile * kTile * width + row % kTile * kTile;
    for (int64_t j = 0; j < width; j += kTile) {
      for (int64_t k = 0; k < kTile; k += kLanes) {
        const float *low = from + j + k, *high = low + width;
        const Vec both = Narrow(*reinterpret_cast<const VecU*>(low), *reinterpret_cast<const VecU*>(high));
        *reinterpret_cast<VecU*>(to + j * kTile + k) = both;
      }
    }
  }
}

void Multiply(const Sweep& sweep, const void* in, bool narrow, const Panels& panels, void* out, const Finish& finish) {
  constexpr int64_t kPixels = 384, kPair = 2 * kTile;
  const int64_t depth = panels.depth, blocks = panels.blocks(), taps = panels.taps;
  // A job is a band of an image, or several images that are smaller than that; where there are few of them, a part of
  // the columns as well.
  const int64_t bands = DivideUp(sweep.rows * sweep.columns, kPixels), height = DivideUp(sweep.rows, bands);
  const Planes planes(sweep, depth, height);
  const int64_t bands_of_image = DivideUp(sweep.rows, height), units = sweep.images * bands_of_image;
  const int64_t fitting = std::max<int64_t>(1, kPixels / (sweep.rows * sweep.columns));
  const int64_t even = DivideUp(DivideUp(units, fitting), Threads()) * Threads();  // groups, as many for each thread
  const int64_t several = DivideUp(units, even), groups = DivideUp(units, several);
  const int64_t parts = std::min(blocks, groups < 2 * Threads() ? DivideUp(2 * Threads(), groups) : 1);
  const int64_t flat = planes.Flat(), row_tiles = flat / kTile;
  const int64_t in_image = sweep.in_rows * sweep.in_columns * 2 * depth;
  const int64_t out_image = sweep.out_rows * sweep.out_columns * panels.columns;
  Parallel(groups * parts, [&](int64_t job) {
    const int64_t part = job % parts, unit = job / parts * several, count = std::min(several, units - unit);
    float* copies = ThreadScratch(count * planes.Size());
    static thread_local std::vector<int64_t> places;     // of the output pixels, -1: a gap between rows
    static thread_local std::vector<const float*> from;  // of each tile of rows
    places.assign(count * flat, -1);
    from.resize(count * row_tiles);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t image = (unit + i) / bands_of_image, top = (unit + i) % bands_of_image * height;
      float* copy = copies + i * planes.Size();
      const char* start = static_cast<const char*>(in) + image * in_image * (narrow ? 2 : 4);
      planes.Copy(start, narrow, top, copy);
      for (int64_t h = 0; h < std::min(height, sweep.rows - top); ++h) {
        const int64_t row = (top + h) * sweep.out_step + sweep.out_top;
        for (int64_t w = 0; w < sweep.columns; ++w) {
          const int64_t column = w * sweep.out_step + sweep.out_left;
          const int64_t place = image * out_image + (row * sweep.out_columns + column) * panels.columns;
          places[i * flat + h * planes.pitch + w] = place;
        }
      }
      for (int64_t tile = 0; tile < row_tiles; ++tile) {
        from[i * row_tiles + tile] = copy + tile * kTile * planes.Pixel();
      }
    }
    const Tiles processor;
    alignas(64) float sums[kPair * kPair];
    const int64_t last = blocks * (part + 1) / parts, tiles = count * row_tiles, pairs = DivideUp(tiles, 2);
    for (int64_t block = blocks * part / parts; block < last; ++block) {
      const int64_t width = panels.width(block), sharers = std::min<int64_t>(pairs, kTile);
      const bool more = block + 1 < last && panels.width(block + 1) == width;
      for (int64_t pair = 0; pair < pairs; ++pair) {
        const int64_t tile = pair * 2;
        const int down = tile + 1 < tiles ? 2 : 1;
        TileFactors left{from[tile], planes.Pixel(), kTile, down > 1 ? from[tile + 1] - from[tile] : 0};
        left.offsets = planes.offset.data(), left.parts = taps;
        for (int64_t column = 0; column < width; column += kPair) {
          const int across = column + kTile < width ? 2 : 1;
          TileFactors right{panels[block] + column * kTile, kTile, kTile * width, kTile * kTile};
          if (more && pair < sharers) {  // a part of what comes next
            right.ahead = panels[block + 1] + column * kTile;
            right.from = static_cast<int>(kTile * pair / sharers);
            right.to = static_cast<int>(kTile * (pair + 1) / sharers);
          }
          processor.Product(down, across, left, right, depth / kTile, sums, kPair, false);
          const int64_t channel = block * kBlock + column;
          const int64_t real = std::min<int64_t>(across * kTile, panels.columns - channel);
          const int64_t* place = places.data() + tile * kTile;
          if (real == 2 * kLanes) {
            finish.Apply(sums, down * kTile, channel, place, out);
            continue;
          }
          for (int64_t row = 0; row < down * kTile; ++row) {
            if (place[row] >= 0) finish.Apply(sums + row * kPair, channel, place[row] + channel, real, out);
          }
        }
      }
    }
  });
}

}  // namespace tiles
}  // namespace ddrnet
