// How a packed convolution is visited when maps are rows (see conv_rows.h): in passes over a few channels of
// one row of taps, whose input stays in the first-level cache while a part of the outputs passes over it.
#ifndef SPARSIFY_KERNELS_CSR_ROW_WEIGHTS_H_
#define SPARSIFY_KERNELS_CSR_ROW_WEIGHTS_H_

#include <cstdint>
#include <vector>

#include "packed.h"
#include "rows_isa.h"

namespace sparsify {
namespace csr {

// Where inputs lie in what a pass reads. Columns of taps differ by pixels to the left or right. Either they
// are part of the offset, and most loads straddle two cache lines. Or passes are made for each such shift,
// all loads are aligned, and sums are moved between passes of different shifts: a pass adds w x[i] to the sum
// of pixel i - shift, and leaves it at i.
struct RowTaps {
  int64_t kernel_height, kernel_width;
  int64_t spacing;               // floats from channel to channel
  int64_t planes;                // how often a channel's columns are there, once for each phase of a stride
  std::vector<int64_t> offsets;  // of each column of taps, from the channel's first float
  std::vector<int64_t> shifts;   // of each column of taps, in pixels; empty if offsets hold them
};

class RowWeights {
 public:
  struct Pass {
    int64_t tap_row;
    int64_t first_channel;
    int64_t shift;  // of this pass
    PanelSegment segment;
  };

  RowWeights(const Matrix& matrix, const RowTaps& taps);
  // Offsets are 16 bits: whether they reach all taps of a few channels.
  static bool Fits(const RowTaps& taps);

  int parts() const { return static_cast<int>(first_pass_.size()) - 1; }
  int64_t first_row(int part) const { return bounds_[static_cast<size_t>(part)] * block_rows_; }
  int64_t last_row(int part) const { return bounds_[static_cast<size_t>(part) + 1] * block_rows_; }
  int64_t largest_part() const;
  // At least one; the first and the last list every output of the part. The last one's shift is 0.
  int passes(int part) const;
  Pass At(int part, int pass) const;
  int64_t reach() const { return reach_; }  // floats beyond offset 0 that the largest offset points at
  size_t bytes() const;

 private:
  struct Begin {
    int64_t tap_row, first_channel, shift;
    size_t entry, row, row_class, class_count;
  };
  struct Tile;
  void AddPart(const Matrix& matrix, int64_t first_line, int64_t last_line, const RowTaps& taps);
  void AddTile(const Matrix& matrix, const Tile& tile, bool first, bool last);

  int block_rows_;
  int64_t channels_ = 0;  // of a pass, at most
  int64_t reach_ = 0;
  std::vector<int64_t> bounds_;  // of the parts, in lines
  std::vector<size_t> first_pass_;
  std::vector<Begin> begins_;
  std::vector<float> values_;
  std::vector<uint16_t> offsets_;
  std::vector<uint32_t> rows_;
  std::vector<RowClass> classes_;
};

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_ROW_WEIGHTS_H_
