#include "panel_plan.h"

#include <algorithm>
#include <utility>

#include "../../base/tuning.h"
#include "values.h"

namespace sparsify {
namespace csr {
namespace {

// A row that brings more than kMaxCount non-zeros to a tile is visited twice, which panels of 64 columns,
// with their four lines of sums, gain less by.
constexpr double kFullTile = 0.9;
constexpr double kFullNarrowTile = 1.1;
constexpr int64_t kShortest = 64;
constexpr int64_t kMostInputs = 1008;  // offsets are 16 bits

int64_t UsefulDepth(const Matrix& matrix, int64_t spacing) {
  const double row_nonzeros = static_cast<double>(matrix.blocks) / static_cast<double>(matrix.rows);
  const double share = spacing >= kPanelColumns ? kFullTile : kFullNarrowTile;
  const double full = share * kMaxCount * static_cast<double>(matrix.columns) / std::max(row_nonzeros, 1.0);
  return full < kMostInputs ? std::max(kShortest, static_cast<int64_t>(full)) : kMostInputs;
}

int64_t TileDepth(const Matrix& matrix, int64_t spacing) {
  const int64_t floats = TileFloats(Tuned().l1_bytes, matrix.block_rows);
  int64_t longest = std::min(floats / spacing, kMostInputs);
  if (matrix.block_rows == 1) longest = std::min(longest, UsefulDepth(matrix, spacing));
  const int64_t tiles = (matrix.columns + longest - 1) / longest;
  const int64_t even = (matrix.columns + tiles - 1) / tiles;
  return (even + kGroup - 1) / kGroup * kGroup;
}

// Whole channels, about as many in every tile.
int64_t FlatDepth(const Matrix& matrix, const FlatTile& flat) {
  const int64_t taps = static_cast<int64_t>(flat.taps.size()), channels = matrix.columns / taps;
  const int64_t most = std::max<int64_t>(1, kFlatTileFloats / flat.floats);
  const int64_t tiles = (channels + most - 1) / most;
  return (channels + tiles - 1) / tiles * taps;
}

struct Entry {
  uint32_t row;
  uint32_t count;
  int64_t first;  // non-zero
  bool begins;
};

}  // namespace

PanelPlan::PanelPlan(const Matrix& matrix, int parts, int64_t spacing, const FlatTile& flat)
    : PanelPlan(matrix, BalancedBounds(matrix.pointers, matrix.lines(), std::max(parts, 1)), spacing, flat) {}

PanelPlan PanelPlan::OfEqualParts(const Matrix& matrix, int64_t rows, int64_t spacing) {
  std::vector<int64_t> bounds = {0};
  for (int64_t line = 0; line < matrix.lines();) {
    line = std::min(line + rows / matrix.block_rows, matrix.lines());
    bounds.push_back(line);
  }
  return PanelPlan(matrix, std::move(bounds), spacing, {});
}

PanelPlan::PanelPlan(const Matrix& matrix, std::vector<int64_t> bounds, int64_t spacing, const FlatTile& flat)
    : block_rows_(matrix.block_rows),
      wide_(spacing > kPanelColumns),
      flat_(flat),
      depth_(this->flat() ? FlatDepth(matrix, flat) : TileDepth(matrix, spacing)),
      tile_floats_(this->flat() ? depth_ / static_cast<int64_t>(flat.taps.size()) * flat.floats
                                : depth_ * spacing),
      tiles_((matrix.columns + depth_ - 1) / depth_),
      bounds_(std::move(bounds)) {
  values_.reserve(static_cast<size_t>(matrix.blocks * block_rows_));
  offsets_.reserve(static_cast<size_t>(matrix.blocks));
  std::vector<int64_t> next(matrix.pointers, matrix.pointers + matrix.lines());
  for (int64_t tile = 0; tile < tiles_; ++tile) {
    for (int part = 0; part < this->parts(); ++part) {
      AddSegment(matrix, tile * depth_, std::min((tile + 1) * depth_, matrix.columns), part, &next);
    }
  }
  rows_.push_back(0);  // what is asked for ahead of the last row
  rows_.shrink_to_fit();
  classes_.shrink_to_fit();
}

uint16_t PanelPlan::Offset(int64_t input) const {
  if (!flat()) return static_cast<uint16_t>(64 * input);
  const int64_t taps = static_cast<int64_t>(flat_.taps.size());
  return static_cast<uint16_t>(input / taps * flat_.floats + flat_.taps[static_cast<size_t>(input % taps)]);
}

void PanelPlan::AddSegment(const Matrix& matrix, int64_t first_input, int64_t last_input, int part,
                           std::vector<int64_t>* next) {
  std::vector<Entry> entries;
  const int64_t first_line = bounds_[static_cast<size_t>(part)];
  for (int64_t line = first_line; line < bounds_[static_cast<size_t>(part) + 1]; ++line) {
    int64_t& at = (*next)[static_cast<size_t>(line)];
    const int64_t end = matrix.pointers[line + 1];
    int64_t stop = at;
    while (stop < end && matrix.Column(stop) < last_input) ++stop;
    const uint32_t row = static_cast<uint32_t>((line - first_line) * block_rows_);
    bool begins = first_input == 0;
    while (at < stop || begins) {
      const int64_t count = block_rows_ > 1 ? stop - at : std::min<int64_t>(stop - at, kMaxCount);
      entries.push_back({row, static_cast<uint32_t>(count), at, begins});
      at += count;
      begins = false;
    }
  }
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.begins != b.begins ? a.begins : a.count < b.count;
  });
  Begin begin = {offsets_.size(), rows_.size(), classes_.size(), 0};
  for (const Entry& entry : entries) {
    if (begin.class_count == 0 || classes_.back().count != entry.count ||
        classes_.back().begins != entry.begins) {
      classes_.push_back({entry.count, 0, entry.begins});
      ++begin.class_count;
    }
    ++classes_.back().rows;
    rows_.push_back(entry.row);
    for (int64_t i = entry.first; i < entry.first + entry.count; ++i) {
      for (int64_t r = 0; r < block_rows_; ++r)
        values_.push_back(ValueAt(matrix.values, i * block_rows_ + r));
      offsets_.push_back(Offset(matrix.Column(i) - first_input));
    }
  }
  begins_.push_back(begin);
}

PanelSegment PanelPlan::Segment(int64_t tile, int part) const {
  const Begin& begin = begins_[static_cast<size_t>(tile * parts() + part)];
  return {values_.data() + begin.entry * static_cast<size_t>(block_rows_),
          offsets_.data() + begin.entry,
          rows_.data() + begin.row,
          classes_.data() + begin.row_class,
          begin.class_count,
          block_rows_,
          flat(),
          Tuned().deep};
}

}  // namespace csr
}  // namespace sparsify
