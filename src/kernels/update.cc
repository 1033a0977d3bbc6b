// What comes after the gradients: their norm in one pass, the update of the weights in one more.
//
// Each operator takes all tensors at once. They are cut into pieces, which the threads take one by one; sums are added
// up in float64 in the pieces' order, so the result does not depend on the number of threads.

#include "kernels.h"

namespace ddrnet {
namespace {

struct Piece {
  int tensor;  // counted among those that were cut
  int64_t first, count;
};

// Cuts the tensors [begin, begin + count) of the operator's inputs.
std::vector<Piece> Cut(const Tensors& t, int begin, int count) {
  constexpr int64_t kPiece = 1 << 15;  // floats
  std::vector<Piece> pieces;
  for (int i = 0; i < count; ++i) {
    const int64_t size = t.Size(begin + i);
    for (int64_t first = 0; first < size; first += kPiece) {
      pieces.push_back({i, first, std::min(kPiece, size - first)});
    }
  }
  return pieces;
}

// Any number of tensors to the sum of the squares of all that is in them, (1).
void SumOfSquares(const Tensors& t) {
  const std::vector<Piece> pieces = Cut(t, 0, t.count - 1);
  float* sums = Scratch(static_cast<int64_t>(pieces.size()));
  Parallel(static_cast<int64_t>(pieces.size()), [&](int64_t job) {
    const Piece& piece = pieces[job];
    const float* from = t.In(piece.tensor) + piece.first;
    constexpr int kParts = 8;
    Vec sum[kParts] = {};
    int64_t i = 0;
    for (; i + kParts * kLanes <= piece.count; i += kParts * kLanes) {
      for (int s = 0; s < kParts; ++s) {
        const Vec value = *reinterpret_cast<const VecU*>(from + i + s * kLanes);
        sum[s] += value * value;
      }
    }
    double total = 0;
    for (; i < piece.count; ++i) total += static_cast<double>(from[i]) * from[i];
    for (int s = 0; s < kParts; ++s) {
      for (int lane = 0; lane < kLanes; ++lane) total += sum[s][lane];
    }
    sums[job] = static_cast<float>(total);
  });
  double total = 0;
  for (size_t i = 0; i < pieces.size(); ++i) total += sums[i];
  t.Out(t.count - 1)[0] = static_cast<float>(total);
}

// rate () or (n), factor (), rules (n, 3: momentum, decay, whether Nesterov's), n weights, n moments, n gradients:
//   m = momentum * m + g + decay * w; w -= rate * (g + decay * w + momentum * m), or rate * m without Nesterov's,
// g being the gradient times the factor. Weights and moments change in place; the output says nothing.
void Momentum(const Tensors& t) {
  const int first = 3, count = (t.count - first - 1) / 3, rate_stride = t.Size(0) > 1;
  const float factor = t.In(1)[0];
  const std::vector<Piece> pieces = Cut(t, first, count);
  Parallel(static_cast<int64_t>(pieces.size()), [&](int64_t job) {
    const Piece& piece = pieces[job];
    const float* rule = t.In(2) + 3 * piece.tensor;
    const float rate = t.In(0)[rate_stride * piece.tensor], momentum = rule[0], decay = rule[1];
    const bool nesterov = rule[2] != 0;
    float* __restrict__ weight = t.Out(first + piece.tensor) + piece.first;
    float* __restrict__ moment = t.Out(first + count + piece.tensor) + piece.first;
    const float* __restrict__ gradient = t.In(first + 2 * count + piece.tensor) + piece.first;
    for (int64_t i = 0; i < piece.count; ++i) {
      const float step = gradient[i] * factor + decay * weight[i];
      moment[i] = momentum * moment[i] + step;
      weight[i] -= rate * (nesterov ? step + momentum * moment[i] : moment[i]);
    }
  });
  t.Out(t.count - 1)[0] = 0;
}

// decay (), n averages, n values: average = decay * average + (1 - decay) * value, in place.
void Average(const Tensors& t) {
  const int first = 1, count = (t.count - first - 1) / 2;
  const float decay = t.In(0)[0], share = 1.0f - decay;
  const std::vector<Piece> pieces = Cut(t, first, count);
  Parallel(static_cast<int64_t>(pieces.size()), [&](int64_t job) {
    const Piece& piece = pieces[job];
    float* __restrict__ average = t.Out(first + piece.tensor) + piece.first;
    const float* __restrict__ value = t.In(first + count + piece.tensor) + piece.first;
    for (int64_t i = 0; i < piece.count; ++i) average[i] = decay * average[i] + share * value[i];
  });
  t.Out(t.count - 1)[0] = 0;
}

}  // namespace
}  // namespace ddrnet

DDRNET_OPERATOR(sum_of_squares, ddrnet::SumOfSquares)
DDRNET_OPERATOR(momentum, ddrnet::Momentum)
DDRNET_OPERATOR(average, ddrnet::Average)
