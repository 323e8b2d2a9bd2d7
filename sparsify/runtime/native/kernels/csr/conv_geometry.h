// Where the taps of a convolution fall for one input size.
#ifndef SPARSIFY_KERNELS_CSR_CONV_GEOMETRY_H_
#define SPARSIFY_KERNELS_CSR_CONV_GEOMETRY_H_

#include <cstdint>
#include <vector>

#include "../api.h"

namespace sparsify {
namespace csr {

// Output rows or columns whose tap lies inside the image.
struct Inside {
  int64_t first, last;
};

// A tap as seen from output pixel 0: row and column of its phase's plane.
struct Tap {
  int64_t plane;  // index of its phase
  int64_t row, column;
};

// Rows and columns of one phase that the image fills.
struct Phase {
  int64_t top, left;  // y mod vertical stride, x mod horizontal stride
  int64_t rows, columns;
};

struct Geometry {
  int64_t height, width, out_height, out_width;
  bool direct;                        // read X itself: no stride
  int64_t plane_height, plane_width;  // of one phase
  std::vector<Phase> phases;          // used ones
  int64_t channel_stride, image_stride;
  std::vector<Tap> taps;              // [kernel height * kernel width]
  std::vector<int64_t> offsets;       // of the taps, inside a channel
  std::vector<Inside> rows, columns;  // of each row and column of the kernel

  int64_t pixels() const { return out_height * out_width; }
  int64_t plane() const { return plane_height * plane_width; }
};

// 0 where the dilated kernel does not fit.
int64_t OutputExtent(int64_t input, int64_t pads, int64_t kernel, int64_t dilation, int64_t stride);

Geometry MakeGeometry(const ConvAttributes& attributes, int64_t height, int64_t width);

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_CONV_GEOMETRY_H_
