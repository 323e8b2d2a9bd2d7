// Convolutions on maps that are kept as rows of pixels, which is how a chain keeps what lies between its
// steps.
//
// Row y of a map holds one channel after the other, `spacing` floats each: its `width` pixels and then zeros,
// one at least. Sixteen zeros stand before the first channel. So what lies left and right of a map is there
// to be read, a row of output needs nothing but a few rows of input, and nothing is packed or unfolded.
#ifndef SPARSIFY_KERNELS_ROWS_H_
#define SPARSIFY_KERNELS_ROWS_H_

#include <cstddef>
#include <cstdint>

#include "epilogue.h"

namespace sparsify {

constexpr int64_t kRowMargin = 16;

// Floats from one channel of a row to the next, a multiple of 16. Rows begin on a cache line.
constexpr int64_t RowSpacing(int64_t width) { return (width + 16) / 16 * 16; }
constexpr int64_t RowFloats(int64_t channels, int64_t width) {
  return kRowMargin + channels * RowSpacing(width);
}

// Where rows of output go: pointers to their channel 0.
struct RowTarget {
  float* const* rows;
  int64_t channel_stride;        // floats: RowSpacing of the output's width, or any if it goes to planes
  bool planes;                   // write pixels only; else zeros as well, and the margin before channel 0
  const float* const* residual;  // rows of this form, read at the pixels that are written; null: none
};

class RowConv {
 public:
  virtual ~RowConv() = default;
  // Output rows that a call may take, at least one.
  virtual int64_t panel_rows() const = 0;
  // What each call reads of the weight.
  virtual size_t weight_bytes() const = 0;
  virtual size_t ScratchBytes() const = 0;
  // `count` <= panel_rows() output rows. input[i] is channel 0 of the i-th row of input that they read, of
  // (count - 1) * stride + (kernel - 1) * dilation + 1, the first being stride * (first output row) - top
  // pad; null where there is none. `ending` gives bias and activation; its residual is not looked at.
  // `scratch` holds ScratchBytes() bytes at any alignment. Sixteen floats behind the last channel of a row
  // are read, too, whatever they are.
  virtual void Run(const float* const* input, int64_t count, const Epilogue& ending, const RowTarget& target,
                   void* scratch) const = 0;
};

}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_ROWS_H_
