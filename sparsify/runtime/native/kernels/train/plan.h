// How the active positions of a weight are visited while their values change at every step.
//
// The same order as that of csr's panel plan: inputs are cut into tiles that stay in the first-level cache,
// rows are sorted by their number of active positions inside a tile. Values are kept apart, one slot for each
// position, and slots of one part of the rows lie together, so that one thread owns them.
#ifndef SPARSIFY_KERNELS_TRAIN_PLAN_H_
#define SPARSIFY_KERNELS_TRAIN_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "../csr/isa.h"
#include "sample.h"

namespace sparsify {
namespace train {

// The active positions of a weight [rows, columns], by row.
struct Topology {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<uint32_t> pointers;  // [rows + 1]
  std::vector<uint32_t> inputs;    // ascending inside a row

  int64_t count() const { return static_cast<int64_t>(inputs.size()); }
};

// From ascending positions row * columns + column; false and *error where they are not.
bool MakeTopology(int64_t rows, int64_t columns, const int64_t* positions, int64_t count, Topology* topology,
                  std::string* error);

// The transposed topology; source[i] is the position's index in the given one.
Topology Transposed(const Topology& topology, std::vector<uint32_t>* source);

// Columns of X that a product takes together: fewer where a row brings few positions to a tile.
int64_t ProductStrip(const Topology& topology);

class Plan {
 public:
  // At least `parts` parts of the rows where there are as many rows. strip: columns, 32 or 64.
  Plan(const Topology& topology, int parts, int64_t strip);

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t strip() const { return strip_; }  // columns of X that are multiplied together
  int64_t depth() const { return depth_; }  // inputs of a tile; the last may have fewer
  int64_t tiles() const { return tiles_; }
  int parts() const { return static_cast<int>(bounds_.size()) - 1; }
  int64_t first_row(int part) const { return bounds_[static_cast<size_t>(part)]; }
  int64_t last_row(int part) const { return bounds_[static_cast<size_t>(part) + 1]; }
  // The slots of a part are [first_slot(part), first_slot(part + 1)).
  int64_t first_slot(int part) const;
  int64_t largest_part_slots() const;
  // Without values where these are null. Rows are relative to the part, and kRowsAhead more may be read.
  csr::PanelSegment Segment(int64_t tile, int part, const float* values) const;
  // First slot of a segment.
  int64_t Slot(int64_t tile, int part) const;
  // Where each position of the topology lies among the slots.
  const std::vector<uint32_t>& slots() const { return slots_; }

 private:
  struct Begin {
    size_t slot, row, row_class, class_count;
  };
  const Begin& At(int64_t tile, int part) const { return begins_[static_cast<size_t>(part * tiles_ + tile)]; }
  void AddSegment(const Topology& topology, int64_t tile, int part, std::vector<uint32_t>* next);

  int64_t rows_, columns_, strip_, depth_, tiles_;
  std::vector<int64_t> bounds_;
  std::vector<Begin> begins_;  // [part][tile]
  std::vector<uint32_t> slots_;
  std::vector<uint16_t> offsets_;
  std::vector<uint32_t> lines_;
  std::vector<csr::RowClass> classes_;
};

}  // namespace train
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_TRAIN_PLAN_H_
