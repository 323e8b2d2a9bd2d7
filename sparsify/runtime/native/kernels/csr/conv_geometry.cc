#include "conv_geometry.h"

#include <algorithm>

namespace sparsify {
namespace csr {
namespace {

std::vector<Inside> FindInside(int64_t input, int64_t output, int64_t pad, int64_t kernel, int64_t dilation,
                               int64_t stride) {
  std::vector<Inside> all;
  for (int64_t at = -pad; kernel > 0; --kernel, at += dilation) {
    const int64_t first = at < 0 ? (stride - 1 - at) / stride : 0;
    const int64_t last = at < input ? (input - at + stride - 1) / stride : 0;
    all.push_back({first, std::min(last, output)});
  }
  return all;
}

int64_t FloorMod(int64_t a, int64_t b) { return (a % b + b) % b; }

// Elements begin, begin + step, … of `size`.
int64_t CountEvery(int64_t size, int64_t begin, int64_t step) {
  return begin < size ? (size - begin + step - 1) / step : 0;
}

}  // namespace

int64_t OutputExtent(int64_t input, int64_t pads, int64_t kernel, int64_t dilation, int64_t stride) {
  const int64_t span = input + pads - ((kernel - 1) * dilation + 1);
  return span < 0 ? 0 : span / stride + 1;
}

Geometry MakeGeometry(const ConvAttributes& a, int64_t height, int64_t width) {
  Geometry g;
  g.height = height;
  g.width = width;
  g.out_height = OutputExtent(height, a.pads[0] + a.pads[2], a.kernel[0], a.dilations[0], a.strides[0]);
  g.out_width = OutputExtent(width, a.pads[1] + a.pads[3], a.kernel[1], a.dilations[1], a.strides[1]);
  g.rows = FindInside(height, g.out_height, a.pads[0], a.kernel[0], a.dilations[0], a.strides[0]);
  g.columns = FindInside(width, g.out_width, a.pads[1], a.kernel[1], a.dilations[1], a.strides[1]);
  g.direct = a.strides[0] == 1 && a.strides[1] == 1;
  g.plane_height = (height + a.strides[0] - 1) / a.strides[0];
  g.plane_width = (width + a.strides[1] - 1) / a.strides[1];
  for (int64_t r = 0; r < a.kernel[0]; ++r) {
    for (int64_t s = 0; s < a.kernel[1]; ++s) {
      const int64_t y = r * a.dilations[0] - a.pads[0], x = s * a.dilations[1] - a.pads[1];
      const int64_t top = FloorMod(y, a.strides[0]), left = FloorMod(x, a.strides[1]);
      const auto found = std::find_if(g.phases.begin(), g.phases.end(), [&](const Phase& phase) {
        return phase.top == top && phase.left == left;
      });
      const int64_t plane = found - g.phases.begin();
      if (found == g.phases.end()) {
        g.phases.push_back(
            {top, left, CountEvery(height, top, a.strides[0]), CountEvery(width, left, a.strides[1])});
      }
      const Tap tap = {plane, (y - top) / a.strides[0], (x - left) / a.strides[1]};
      g.taps.push_back(tap);
      g.offsets.push_back(plane * g.plane() + tap.row * g.plane_width + tap.column);
    }
  }
  g.channel_stride = static_cast<int64_t>(g.phases.size()) * g.plane();
  g.image_stride = a.in_channels * g.channel_stride;
  return g;
}

}  // namespace csr
}  // namespace sparsify
