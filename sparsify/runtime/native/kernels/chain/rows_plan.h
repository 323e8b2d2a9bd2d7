// The part of a chain that runs row by row: which steps, in which order, and where their rows lie.
//
// Maps between its steps are kept as rows (see ../rows.h). A step gives a few rows of its map as soon as the
// rows are there that they need, so most maps are rings of a few rows that never leave a second-level cache.
// Steps whose weights do not fit into that cache together are cut into segments, one after another; only what
// a later segment reads is kept whole.
#ifndef SPARSIFY_KERNELS_CHAIN_ROWS_PLAN_H_
#define SPARSIFY_KERNELS_CHAIN_ROWS_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "../rows.h"
#include "plan.h"

namespace sparsify {
namespace chain {

// A value of the chain, of one image.
struct RowValue {
  int64_t channels;
  Size size;
};

// A step as the plan sees it.
struct RowStep {
  std::shared_ptr<const RowConv> conv;  // null: this step does not run on rows
  double gain;                          // what rows save, in any unit
  int64_t input, residual;              // values; -1 for no residual
  int64_t stride, reach, pad;           // output row y reads input rows [y * stride - pad, … + reach)
  Epilogue ending;                      // without its residual
};

struct RowChain {
  std::vector<RowValue> values;  // outer maps, then what the steps give
  std::vector<RowStep> steps;

  int64_t maps() const { return static_cast<int64_t>(values.size() - steps.size()); }
};

// What gives rows of a map within a segment, from rows of nodes before it.
struct RowNode {
  enum class Work {
    kGiven,   // nothing: the map is there, whole, from an earlier segment
    kImport,  // rows of an outer map, from its planes
    kConv,
    kCopy,  // rows of another node
  };
  enum class Kept { kRing, kWhole, kPlanes };

  Work work;
  Kept kept;
  int64_t value;  // of the chain
  int64_t channels;
  Size size;
  int32_t input = -1, residual = -1;       // nodes of the segment
  int64_t stride = 1, reach = 1, pad = 0;  // see RowStep
  int64_t panel = 1;                       // rows that it gives at once, at most
  std::shared_ptr<const RowConv> conv;     // of kConv
  Epilogue ending;                         // of kConv
  int32_t place_of = -1;  // its residual, whose memory it takes, row for row; -1: it has memory of its own
  int64_t capacity = 0;   // rows for which there is room; row y lies at y % capacity
  int64_t offset = 0, band_stride = 0;  // floats, of the first band's row 0; 0 where bands share the map

  int64_t row_floats() const { return RowFloats(channels, size.width); }
};

struct RowTask {
  int32_t node, first, count;  // rows [first, first + count) of what it gives
};

struct RowSegment {
  std::vector<RowNode> nodes;
  std::vector<std::vector<RowTask>> bands;  // of each band of rows, in the order in which they run
  int64_t weight_bytes = 0;
  int64_t held_floats = 0;   // rows that are needed at once, of all maps
  int64_t moved_floats = 0;  // of maps that come from, or go to, other segments
};

struct RowPlan {
  int64_t steps = 0;  // the first so many of the chain
  int64_t bands = 1;
  std::vector<RowSegment> segments;
  int64_t floats = 0;        // of all rows
  size_t scratch_bytes = 0;  // for the kernels of each band
};

// Null where no step runs on rows: as many from the first on do as gain the most together. Each segment's
// rows are cut into `bands`, which may run at the same time. What steps beyond the plan's read, and what the
// chain's last step gives, is written as planes.
std::shared_ptr<const RowPlan> MakeRowPlan(const RowChain& chain, int64_t bands);

}  // namespace chain
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CHAIN_ROWS_PLAN_H_
