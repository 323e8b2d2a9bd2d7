#include "plan.h"

#include <algorithm>

#include "../../base/tuning.h"
#include "../csr/panel_plan.h"

namespace sparsify {
namespace train {
namespace {

using csr::kGroup;
using csr::kMaxCount;

constexpr int64_t kShortest = 64;
// Where a row brings fewer positions to a tile than this, moving its waiting sums costs more than what the
// products do. Narrow strips have tiles twice as long: 10 to 20 % faster at 98 % zeros.
constexpr double kFewInTile = 4.0;
constexpr int64_t kLargestExtent = int64_t{1} << 31;

// Floats of a tile of X.
int64_t TileFloats() { return csr::TileFloats(Tuned().l1_bytes, 1); }

double RowCount(const Topology& topology) {
  return static_cast<double>(topology.count()) / static_cast<double>(std::max<int64_t>(1, topology.rows));
}

}  // namespace

int64_t ProductStrip(const Topology& topology) {
  const double in_tile = RowCount(topology) * static_cast<double>(TileFloats() / csr::kPanelColumns) /
                         static_cast<double>(topology.columns);
  return in_tile < kFewInTile ? csr::kPanelColumns / 2 : csr::kPanelColumns;
}

namespace {

int64_t Depth(const Topology& topology, int64_t strip) {
  // A row with more than kMaxCount positions in a tile is visited several times, so longer tiles gain
  // nothing.
  const double full =
      1.1 * kMaxCount * static_cast<double>(topology.columns) / std::max(RowCount(topology), 1.0);
  const double cache = static_cast<double>(TileFloats() / strip);
  const int64_t longest = std::max(kShortest, static_cast<int64_t>(std::min(full, cache)));
  const int64_t tiles = (topology.columns + longest - 1) / longest;
  const int64_t even = (topology.columns + tiles - 1) / tiles;
  return (even + kGroup - 1) / kGroup * kGroup;
}

struct Line {
  uint32_t row, count, first;
};

}  // namespace

bool MakeTopology(int64_t rows, int64_t columns, const int64_t* positions, int64_t count, Topology* topology,
                  std::string* error) {
  if (rows < 1 || columns < 1 || rows >= kLargestExtent || columns >= kLargestExtent || count < 0 ||
      count >= kLargestExtent) {
    *error = "a sparse layer needs 1 to 2^31 - 1 rows and columns, and fewer than 2^31 active positions";
    return false;
  }
  topology->rows = rows;
  topology->columns = columns;
  topology->pointers.assign(static_cast<size_t>(rows) + 1, 0);
  topology->inputs.resize(static_cast<size_t>(count));
  int64_t last = -1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = positions[i];
    if (position <= last || position >= rows * columns) {
      *error = "active position " + std::to_string(i) + " is " + std::to_string(position) +
               ": positions must ascend and lie inside the weight";
      return false;
    }
    ++topology->pointers[static_cast<size_t>(position / columns) + 1];
    topology->inputs[static_cast<size_t>(i)] = static_cast<uint32_t>(position % columns);
    last = position;
  }
  for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
    topology->pointers[row + 1] += topology->pointers[row];
  }
  return true;
}

Topology Transposed(const Topology& topology, std::vector<uint32_t>* source) {
  Topology result;
  result.rows = topology.columns;
  result.columns = topology.rows;
  result.pointers.assign(static_cast<size_t>(topology.columns) + 1, 0);
  result.inputs.resize(topology.inputs.size());
  source->resize(topology.inputs.size());
  for (const uint32_t input : topology.inputs) ++result.pointers[input + 1];
  for (size_t i = 0; i < static_cast<size_t>(topology.columns); ++i) {
    result.pointers[i + 1] += result.pointers[i];
  }
  std::vector<uint32_t> next(result.pointers.begin(), result.pointers.end() - 1);
  for (size_t row = 0; row < static_cast<size_t>(topology.rows); ++row) {
    for (uint32_t i = topology.pointers[row]; i < topology.pointers[row + 1]; ++i) {
      const uint32_t at = next[topology.inputs[i]]++;
      result.inputs[at] = static_cast<uint32_t>(row);
      (*source)[at] = i;
    }
  }
  return result;
}

Plan::Plan(const Topology& topology, int parts, int64_t strip)
    : rows_(topology.rows),
      columns_(topology.columns),
      strip_(strip),
      depth_(Depth(topology, strip_)),
      tiles_((topology.columns + depth_ - 1) / depth_),
      bounds_(csr::BalancedBounds(topology.pointers.data(), topology.rows, std::max(parts, 1))) {
  slots_.resize(topology.inputs.size());
  offsets_.reserve(topology.inputs.size());
  std::vector<uint32_t> next(topology.pointers.begin(), topology.pointers.end() - 1);
  for (int part = 0; part < this->parts(); ++part) {
    for (int64_t tile = 0; tile < tiles_; ++tile) AddSegment(topology, tile, part, &next);
  }
  lines_.insert(lines_.end(), kRowsAhead, 0);
}

void Plan::AddSegment(const Topology& topology, int64_t tile, int part, std::vector<uint32_t>* next) {
  std::vector<Line> found;
  const int64_t first_input = tile * depth_, last_input = first_input + depth_;
  for (int64_t row = first_row(part); row < last_row(part); ++row) {
    uint32_t& at = (*next)[static_cast<size_t>(row)];
    const uint32_t end = topology.pointers[static_cast<size_t>(row) + 1];
    uint32_t stop = at;
    while (stop < end && topology.inputs[stop] < last_input) ++stop;
    while (at < stop) {
      const uint32_t count = std::min<uint32_t>(stop - at, kMaxCount);
      found.push_back({static_cast<uint32_t>(row - first_row(part)), count, at});
      at += count;
    }
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const Line& a, const Line& b) { return a.count < b.count; });
  Begin begin = {offsets_.size(), lines_.size(), classes_.size(), 0};
  for (const Line& line : found) {
    if (begin.class_count == 0 || classes_.back().count != line.count) {
      classes_.push_back({line.count, 0});
      ++begin.class_count;
    }
    ++classes_.back().rows;
    lines_.push_back(line.row);
    for (uint32_t i = line.first; i < line.first + line.count; ++i) {
      slots_[i] = static_cast<uint32_t>(offsets_.size());
      offsets_.push_back(static_cast<uint16_t>(64 * (topology.inputs[i] - first_input)));
    }
  }
  begins_.push_back(begin);
}

int64_t Plan::first_slot(int part) const {
  return part == parts() ? static_cast<int64_t>(offsets_.size()) : Slot(0, part);
}

int64_t Plan::largest_part_slots() const {
  int64_t largest = 0;
  for (int part = 0; part < parts(); ++part) {
    largest = std::max(largest, first_slot(part + 1) - first_slot(part));
  }
  return largest;
}

int64_t Plan::Slot(int64_t tile, int part) const { return static_cast<int64_t>(At(tile, part).slot); }

csr::PanelSegment Plan::Segment(int64_t tile, int part, const float* values) const {
  const Begin& begin = At(tile, part);
  csr::PanelSegment segment = {};
  segment.values = values != nullptr ? values + begin.slot : nullptr;
  segment.offsets = offsets_.data() + begin.slot;
  segment.rows = lines_.data() + begin.row;
  segment.classes = classes_.data() + begin.row_class;
  segment.class_count = begin.class_count;
  segment.block_rows = 1;
  segment.deep = Tuned().deep;
  return segment;
}

}  // namespace train
}  // namespace sparsify
