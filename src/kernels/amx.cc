// Products of bfloat16 on the tiles of Intel's Advanced Matrix Extensions (AMX): eight registers of 16 rows of 64 bytes
// each, and an instruction that adds to 16 x 16 sums the products of 16 x 32 and 32 x 16 factors (Intel 64 and IA-32
// Architectures Software Developer's Manual, volume 1, chapter 18). The processors that have them multiply in bfloat16
// eight times as fast so as by AVX-512.

#include "kernels.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ddrnet {

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)

namespace {

// The system keeps the registers of those alone who have asked for it.
bool Granted() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, of Linux 5.16
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

bool wanted = true;

// Registers 0 to 3 hold the sums, 4 and 5 the rows' factors, 6 and 7 the columns'.
template <int down, int across>
void ProductOf(const TileFactors& rows, const TileFactors& columns, int64_t steps, float* out, int64_t stride,
               bool onto) {
  const int64_t bytes = stride * 4, row_bytes = rows.stride * 4, column_bytes = columns.stride * 4;
  float* const below = out + kTile * stride;
  if (onto) {
    _tile_loadd(0, out, bytes);
    if constexpr (across > 1) _tile_loadd(1, out + kTile, bytes);
    if constexpr (down > 1) _tile_loadd(2, below, bytes);
    if constexpr (down > 1 && across > 1) _tile_loadd(3, below + kTile, bytes);
  } else {
    _tile_zero(0);
    if constexpr (across > 1) _tile_zero(1);
    if constexpr (down > 1) _tile_zero(2);
    if constexpr (down > 1 && across > 1) _tile_zero(3);
  }
  const float *b = columns.memory, *ahead = columns.ahead;
  for (int64_t part = 0; part < rows.parts; ++part) {
    const float* a = rows.memory + (rows.offsets ? rows.offsets[part] : 0);
    for (int64_t step = 0; step < steps; ++step, a += rows.step, b += columns.step) {
      if (ahead) {
        for (int row = columns.from; row < columns.to; ++row) {
          _mm_prefetch(ahead + row * columns.stride, _MM_HINT_T1);
          _mm_prefetch(ahead + columns.next + row * columns.stride, _MM_HINT_T1);
        }
        ahead += columns.step;
      }
      _tile_loadd(6, b, column_bytes);
      _tile_loadd(4, a, row_bytes);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (down > 1) {
        _tile_loadd(5, a + rows.next, row_bytes);
        _tile_dpbf16ps(2, 5, 6);
      }
      if constexpr (across > 1) {
        _tile_loadd(7, b + columns.next, column_bytes);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (down > 1) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, out, bytes);
  if constexpr (across > 1) _tile_stored(1, out + kTile, bytes);
  if constexpr (down > 1) _tile_stored(2, below, bytes);
  if constexpr (down > 1 && across > 1) _tile_stored(3, below + kTile, bytes);
}

}  // namespace

bool HasTiles() {
  static const bool granted = Granted();
  return granted && wanted;
}

Tiles::Tiles() {
  static const Configuration configuration;
  _tile_loadconfig(&configuration);
}
Tiles::~Tiles() { _tile_release(); }

void Tiles::Product(int down, int across, const TileFactors& rows, const TileFactors& columns, int64_t steps,
                    float* out, int64_t stride, bool onto) const {
  const auto product =
      down > 1 ? (across > 1 ? ProductOf<2, 2> : ProductOf<2, 1>) : (across > 1 ? ProductOf<1, 2> : ProductOf<1, 1>);
  product(rows, columns, steps, out, stride, onto);
}

#else

namespace {
bool wanted = true;
}

bool HasTiles() { return false && wanted; }
Tiles::Tiles() {}
Tiles::~Tiles() {}
void Tiles::Product(int, int, const TileFactors&, const TileFactors&, int64_t, float*, int64_t, bool) const {
  Require(false, "Tiles: this processor has none");
}

#endif

}  // namespace ddrnet

// Whether products of bfloat16 may use the tiles; returns whether they do.
extern "C" int ddrnet_use_tiles(int use) {
  ddrnet::wanted = use != 0;
  return ddrnet::HasTiles();
}
