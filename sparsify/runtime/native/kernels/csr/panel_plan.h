// How a packed weight is visited by the panel product.
//
// Inputs are cut into tiles whose panel stays in the first-level cache while all rows pass over it; inside a
// tile rows are sorted by their number of non-zeros (see panel_body.h). Rows are cut into parts with about
// the same number of non-zeros, the units of work when there are fewer panels than threads.
#ifndef SPARSIFY_KERNELS_CSR_PANEL_PLAN_H_
#define SPARSIFY_KERNELS_CSR_PANEL_PLAN_H_

#include <cstdint>
#include <vector>

#include "isa.h"
#include "packed.h"

namespace sparsify {
namespace csr {

// Groups of columns that are multiplied together. With many outputs in a block few columns keep the FMAs
// busy, and narrow tiles are long: the waiting sums are moved less often.
constexpr int MostGroups(int block_rows) { return block_rows >= 8 ? 2 : kMaxGroups; }

// How many panels, as wide as each other up to one group, take so many groups with `most` in each. One that
// would be left alone becomes the fifth of a panel where these may be `wide`.
constexpr int64_t PanelCount(int64_t groups, int64_t most, bool wide) {
  const bool fifth = wide && most == kMaxGroups && groups > most && groups % most == 1;
  return (groups - (fifth ? 1 : 0) + most - 1) / most;
}

// Groups of the widest of these panels.
constexpr int64_t WidestPanel(int64_t groups, int64_t most) {
  const int64_t count = PanelCount(groups, most, true);
  return (groups + count - 1) / count;
}

// A tile has the first-level cache for itself but for what streams past; blocks of outputs stream less. Of a
// flat tile every line is read many times in a row, and more tiles cost less than lines that fall out of the
// cache.
constexpr int64_t kStreamBytes = 4 << 10;
constexpr int64_t kFewestStreaming = 4;
constexpr int64_t kFlatTileFloats = 56 * kPanelColumns;

// Floats of a tile for blocks of so many outputs.
constexpr int64_t TileFloats(int64_t l1_bytes, int block_rows) {
  return (l1_bytes - (block_rows >= kFewestStreaming ? 0 : kStreamBytes)) /
         static_cast<int64_t>(sizeof(float));
}

// How the inputs (channel, tap) of a convolution lie in a tile of flattened rows (see conv_flat.h).
struct FlatTile {
  int64_t floats = 0;         // of a channel
  std::vector<int64_t> taps;  // where a panel's first column is found in a channel; none: no such tile
};

class PanelPlan {
 public:
  // At most `parts` parts of the rows, at least one; tiles fit panels with this spacing.
  PanelPlan(const Matrix& matrix, int parts, int64_t spacing, const FlatTile& flat = {});
  // Parts of so many rows, a multiple of 16.
  static PanelPlan OfEqualParts(const Matrix& matrix, int64_t rows, int64_t spacing);

  int64_t depth() const { return depth_; }  // inputs of a tile; the last may have fewer
  int64_t tile_floats() const { return tile_floats_; }
  bool flat() const { return !flat_.taps.empty(); }
  int64_t tiles() const { return tiles_; }
  int parts() const { return static_cast<int>(bounds_.size()) - 1; }
  int64_t first_row(int part) const { return bounds_[static_cast<size_t>(part)] * block_rows_; }
  // A whole number of blocks, so it may lie beyond the last row of the weight.
  int64_t last_row(int part) const { return bounds_[static_cast<size_t>(part) + 1] * block_rows_; }
  int most_groups() const { return flat() ? kMaxGroups : MostGroups(block_rows_); }
  bool wide() const { return wide_; }  // whether a panel may have one group more
  int64_t widest() const { return most_groups() + (wide() ? 1 : 0); }
  PanelSegment Segment(int64_t tile, int part) const;

 private:
  struct Begin {
    size_t entry, row, row_class, class_count;
  };
  PanelPlan(const Matrix& matrix, std::vector<int64_t> bounds, int64_t spacing, const FlatTile& flat);
  uint16_t Offset(int64_t input) const;  // counted from the tile's first
  void AddSegment(const Matrix& matrix, int64_t first_input, int64_t last_input, int part,
                  std::vector<int64_t>* next);

  int block_rows_ = 1;
  bool wide_ = false;
  FlatTile flat_;
  int64_t depth_ = 0;
  int64_t tile_floats_ = 0;
  int64_t tiles_ = 0;
  std::vector<int64_t> bounds_;  // in block rows
  std::vector<Begin> begins_;    // [tile][part]
  std::vector<float> values_;
  std::vector<uint16_t> offsets_;
  std::vector<uint32_t> rows_;
  std::vector<RowClass> classes_;
};

// Bounds of at most `parts` ranges of [0, size) that carry about the same weight; weights[i] is the total
// weight before item i, for i <= size.
template <class T>
std::vector<int64_t> BalancedBounds(const T* totals, int64_t size, int64_t parts) {
  std::vector<int64_t> bounds = {0};
  int64_t at = 0;
  for (int64_t part = 1; part < parts; ++part) {
    const double share =
        static_cast<double>(totals[size]) * static_cast<double>(part) / static_cast<double>(parts);
    while (at < size && static_cast<double>(totals[at]) < share) ++at;
    if (at > bounds.back() && at < size) bounds.push_back(at);
  }
  bounds.push_back(size);
  return bounds;
}

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_PANEL_PLAN_H_
