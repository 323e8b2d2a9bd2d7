#include "conv_flat.h"

#include <algorithm>

#include "../../base/tuning.h"

namespace sparsify {
namespace csr {
namespace {

constexpr int kFewestBlockRows = 4;  // below, loads are the limit
// Deep CPUs lose more by loads that straddle lines than by gathering taps once blocks of four are so dense.
constexpr int kDenseBlockRows = 4;
constexpr double kDenseShare = 0.18;
constexpr double kLargestTile = 0.75;  // of the floats that gathered taps take
constexpr double kMostColumns = 1.25;  // of the output pixels

int64_t FloorDiv(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

int64_t Registers(int64_t columns) { return (columns + kGroup - 1) / kGroup; }

// The taps of one phase.
struct Reach {
  int64_t left = 0, right = 0;  // least and greatest column
};

std::vector<Reach> FindReach(const Geometry& g) {
  std::vector<Reach> reach(g.phases.size());
  std::vector<bool> seen(g.phases.size());
  for (const Tap& tap : g.taps) {
    const size_t p = static_cast<size_t>(tap.plane);
    Reach& r = reach[p];
    r.left = seen[p] ? std::min(r.left, tap.column) : tap.column;
    r.right = seen[p] ? std::max(r.right, tap.column) : tap.column;
    seen[p] = true;
  }
  return reach;
}

double BlockShare(const Matrix& matrix) {
  return static_cast<double>(matrix.blocks) / static_cast<double>(matrix.lines() * matrix.columns);
}

}  // namespace

FlatShape::FlatShape(const Geometry& g) : pitch(g.out_width) {
  const std::vector<Reach> reach = FindReach(g);
  for (size_t p = 0; p < g.phases.size(); ++p) {
    const int64_t held = g.phases[p].columns;
    const int64_t used = std::max<int64_t>(0, std::min(held, g.out_width + reach[p].right));
    // Zeros to the left of a row are those to the right of the one before.
    const int64_t zeros = std::max<int64_t>({0, -reach[p].left, g.out_width + reach[p].right - held});
    pitch = std::max(pitch, used + zeros);
    widths.push_back(used);
  }
  columns = (g.out_height - 1) * pitch + g.out_width;
  width = kSpacing[WidestPanel(Registers(columns), kMaxGroups)];
  std::vector<int64_t> highs(g.phases.size());
  lows.resize(g.phases.size());
  std::vector<bool> seen(g.phases.size());
  for (const Tap& tap : g.taps) {
    const size_t p = static_cast<size_t>(tap.plane);
    const int64_t at = tap.row * pitch + tap.column;
    lows[p] = seen[p] ? std::min(lows[p], at) : at;
    highs[p] = seen[p] ? std::max(highs[p], at) : at;
    seen[p] = true;
  }
  begins.push_back(0);
  for (size_t p = 0; p < g.phases.size(); ++p) {
    begins.push_back(begins[p] + Registers(highs[p] - lows[p] + width) * kGroup);
  }
  tile.floats = begins.back();
  for (const Tap& tap : g.taps) {
    const size_t p = static_cast<size_t>(tap.plane);
    tile.taps.push_back(begins[p] + tap.row * pitch + tap.column - lows[p]);
  }
}

bool PrefersFlat(const FlatShape& shape, const Geometry& g, const Matrix& matrix, int64_t images) {
  if (Tuned().deep && matrix.block_rows == kDenseBlockRows && BlockShare(matrix) >= kDenseShare) return false;
  const double gathered = static_cast<double>(shape.width) * static_cast<double>(g.taps.size());
  const double wanted = static_cast<double>(Registers(images * g.pixels()));
  return matrix.block_rows >= kFewestBlockRows && shape.tile.floats <= kFlatTileFloats &&
         static_cast<double>(shape.tile.floats) <= kLargestTile * gathered &&
         static_cast<double>(images * Registers(shape.columns)) <= kMostColumns * wanted;
}

FlatPixels::FlatPixels(const ConvAttributes& a, const Geometry& g, const FlatShape& shape, int64_t image,
                       int64_t first, int64_t count)
    : channel_stride_(g.channel_stride) {
  for (size_t p = 0; p < g.phases.size(); ++p) {
    const int64_t source = image * g.image_stride + static_cast<int64_t>(p) * g.plane();
    for (int64_t at = shape.begins[p]; at < shape.begins[p + 1]; at += kGroup) {
      AddRegister(g, shape, p, source, first + shape.lows[p] + at - shape.begins[p]);
    }
  }
  for (int64_t column = first; column < first + count;) {
    const int64_t y = column / shape.pitch, x = column % shape.pitch;
    if (x < g.out_width) {
      const int64_t length = std::min(g.out_width - x, first + count - column);
      targets_.push_back({image * a.out_channels * g.pixels() + y * g.out_width + x, column - first, length});
    }
    column += shape.pitch - x;
  }
}

void FlatPixels::AddRegister(const Geometry& g, const FlatShape& shape, size_t phase, int64_t source,
                             int64_t column) {
  for (int64_t lane = 0; lane < kGroup;) {
    const int64_t y = FloorDiv(column + lane, shape.pitch), x = column + lane - y * shape.pitch;
    const int64_t rest = kGroup - lane, held = shape.widths[phase] - x;
    if (y >= 0 && y < g.phases[phase].rows && held > 0) {
      const int64_t length = std::min(held, rest);
      sources_.push_back(source + y * g.plane_width + x - lane);
      masks_.push_back(static_cast<uint16_t>(((uint32_t{1} << length) - 1) << lane));
    }
    lane += std::min(rest, shape.pitch - x);
  }
  register_end_.push_back(static_cast<uint32_t>(sources_.size()));
}

FlatPanel FlatPixels::panel() const {
  return {sources_.data(), masks_.data(), register_end_.data(), static_cast<int64_t>(register_end_.size()),
          channel_stride_};
}

}  // namespace csr
}  // namespace sparsify
