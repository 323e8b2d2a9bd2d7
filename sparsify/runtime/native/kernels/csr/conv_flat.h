// Convolution of blocks of outputs over flattened rows of pixels.
//
// A tile holds a few rows of each of its channels, padded and laid end to end, so that every tap of a panel's
// pixels is one run of it at an offset that does not depend on the pixels. Nothing is written once a tap: a
// 3 x 3 kernel brings 3 to 6 times as many channels into the first-level cache as a panel of (channel, tap)
// inputs does, and the waiting sums are moved that much less often. In exchange loads straddle cache lines,
// which blocks of four outputs and more leave room for, and the columns where one row of pixels meets the
// next are computed in vain.
#ifndef SPARSIFY_KERNELS_CSR_CONV_FLAT_H_
#define SPARSIFY_KERNELS_CSR_CONV_FLAT_H_

#include <cstdint>
#include <vector>

#include "conv_geometry.h"
#include "isa.h"
#include "panel_plan.h"

namespace sparsify {
namespace csr {

// How the padded rows of every phase are laid out.
struct FlatShape {
  explicit FlatShape(const Geometry& geometry);

  int64_t pitch;                // columns from one row of output pixels to the next
  int64_t columns;              // of an image
  int64_t width;                // columns of a panel
  std::vector<int64_t> lows;    // of each phase: its first column, seen from the panel's
  std::vector<int64_t> widths;  // of each phase: columns of a row that hold pixels
  std::vector<int64_t> begins;  // of each phase in a channel of the tile, and the end
  FlatTile tile;
};

// Whether that is faster than gathering every tap, for a layout of so many outputs a block.
bool PrefersFlat(const FlatShape& shape, const Geometry& geometry, const Matrix& matrix, int64_t images);

// Columns [first, first + count) of one image.
class FlatPixels {
 public:
  FlatPixels(const ConvAttributes& attributes, const Geometry& geometry, const FlatShape& shape,
             int64_t image, int64_t first, int64_t count);

  FlatPanel panel() const;
  const std::vector<OutputRun>& targets() const { return targets_; }

 private:
  // Where the sixteen columns from `column` on are found in a phase.
  void AddRegister(const Geometry& geometry, const FlatShape& shape, size_t phase, int64_t source,
                   int64_t column);

  int64_t channel_stride_;
  std::vector<int64_t> sources_;
  std::vector<uint16_t> masks_;
  std::vector<uint32_t> register_end_;
  std::vector<OutputRun> targets_;
};

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_CONV_FLAT_H_
