// Convolution as a panel product: columns are output pixels of all images, inputs are (channel, tap) pairs.
//
// Each tile of inputs is gathered into its panel just before it is used, so nothing of the size of an
// unfolded input is ever written. Padding and strides are dealt with once, in a copy of the input: zeros
// around it, and one plane for each phase (y mod stride, x mod stride), so that every tap of every output row
// is contiguous.
#include <algorithm>
#include <cstring>
#include <vector>

#include "family.h"
#include "panel_product.h"

namespace sparsify {
namespace csr {
namespace {

constexpr int64_t kLargestIndex = int64_t{1} << 40;

// Where the taps of one input size are found.
struct Geometry {
  int64_t height, width, out_height, out_width;
  bool direct;                        // read X itself: no padding, no stride
  int64_t plane_height, plane_width;  // of one phase
  std::vector<int64_t> phases;        // used ones: y phase * horizontal stride + x phase
  int64_t channel_stride, image_stride;
  std::vector<int64_t> taps;  // [kernel height * kernel width] offset inside a channel

  int64_t pixels() const { return out_height * out_width; }
  int64_t planes() const { return static_cast<int64_t>(phases.size()); }
};

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
  g.direct = a.strides[0] == 1 && a.strides[1] == 1 && a.pads[0] + a.pads[1] + a.pads[2] + a.pads[3] == 0;
  g.plane_height = (height + a.pads[0] + a.pads[2] + a.strides[0] - 1) / a.strides[0];
  g.plane_width = (width + a.pads[1] + a.pads[3] + a.strides[1] - 1) / a.strides[1];
  const int64_t plane = g.plane_height * g.plane_width;
  for (int64_t r = 0; r < a.kernel[0]; ++r) {
    for (int64_t s = 0; s < a.kernel[1]; ++s) {
      const int64_t y = r * a.dilations[0], x = s * a.dilations[1];
      const int64_t phase = y % a.strides[0] * a.strides[1] + x % a.strides[1];
      const auto found = std::find(g.phases.begin(), g.phases.end(), phase);
      const int64_t index = found - g.phases.begin();
      if (found == g.phases.end()) g.phases.push_back(phase);
      g.taps.push_back(index * plane + y / a.strides[0] * g.plane_width + x / a.strides[1]);
    }
  }
  g.channel_stride = g.planes() * plane;
  g.image_stride = a.in_channels * g.channel_stride;
  return g;
}

// One phase of one channel, padded: target[i][j] = x[i * stride + phase - pad], zero outside.
void CopyPhase(const ConvAttributes& a, const Geometry& g, int64_t phase, const float* x, float* target) {
  const int64_t top = phase / a.strides[1] - a.pads[0], left = phase % a.strides[1] - a.pads[1];
  const int64_t step = a.strides[1];
  // Columns j with 0 <= j * step + left < width.
  const int64_t first = std::min(g.plane_width, left < 0 ? (-left + step - 1) / step : 0);
  const int64_t last = std::max(first, std::min(g.plane_width, (g.width - left + step - 1) / step));
  for (int64_t i = 0; i < g.plane_height; ++i) {
    float* row = target + i * g.plane_width;
    const int64_t y = i * a.strides[0] + top;
    if (y < 0 || y >= g.height) {
      std::fill(row, row + g.plane_width, 0.0f);
      continue;
    }
    const float* source = x + y * g.width + left;
    std::fill(row, row + first, 0.0f);
    if (step == 1) {
      std::copy(source + first, source + last, row + first);
    } else {
      for (int64_t j = first; j < last; ++j) row[j] = source[j * step];
    }
    std::fill(row + last, row + g.plane_width, 0.0f);
  }
}

// The pixels [first, first + count) of consecutive images, as runs of neighbours in the source and in y.
void FindRuns(const Geometry& g, int64_t out_channels, int64_t first, int64_t count,
              std::vector<PixelRun>* sources, std::vector<OutputRun>* targets) {
  const int64_t pixels = g.pixels();
  for (int64_t column = 0; column < count;) {
    const int64_t image = (first + column) / pixels, pixel = (first + column) % pixels;
    const int64_t left = std::min(count - column, pixels - pixel);
    targets->push_back({image * out_channels * pixels + pixel, column, left});
    const int64_t run_width = g.out_width == g.plane_width ? pixels : g.out_width;
    for (int64_t done = 0; done < left;) {
      const int64_t at = pixel + done;
      const int64_t length = std::min(left - done, run_width - at % run_width);
      const int64_t source = at / g.out_width * g.plane_width + at % g.out_width;
      sources->push_back({image * g.image_stride + source, column + done, length});
      done += length;
    }
    column += left;
  }
}

// Output pixels as the columns of a panel.
struct Pixels {
  const Isa& isa;
  const Geometry& geometry;
  const float* x;
  const int64_t* offsets;  // of each input, in x
  const Epilogue& epilogue;
  float* y;
  std::vector<PixelRun> sources;
  std::vector<OutputRun> targets;

  void Pack(int64_t first_input, int64_t depth, float* tile, int groups) const {
    isa.pack_pixels(x, offsets + first_input, depth, sources.data(), sources.size(), tile, groups);
  }
  void Store(int64_t first, int64_t last, const float* panel, int groups) const {
    isa.store_pixels(panel, first, last, targets.data(), targets.size(), epilogue, y, geometry.pixels(),
                     groups);
  }
};

class CsrConv final : public ConvKernel {
 public:
  CsrConv(const Isa& isa, const ConvAttributes& attributes, const Matrix& matrix)
      : isa_(isa), attributes_(attributes), matrix_(matrix), panel_plans_(matrix) {}

  const ConvAttributes& attributes() const override { return attributes_; }

  bool OutputSize(int64_t height, int64_t width, int64_t* out_height, int64_t* out_width) const override {
    const ConvAttributes& a = attributes_;
    if (height < 1 || width < 1 || height > kLargestIndex / width) return false;
    *out_height = OutputExtent(height, a.pads[0] + a.pads[2], a.kernel[0], a.dilations[0], a.strides[0]);
    *out_width = OutputExtent(width, a.pads[1] + a.pads[3], a.kernel[1], a.dilations[1], a.strides[1]);
    return *out_height > 0 && *out_width > 0;
  }

  size_t ScratchBytes(int64_t batch, int64_t height, int64_t width, int threads) const override {
    if (batch < 1) return 0;
    const Geometry g = MakeGeometry(attributes_, height, width);
    const int64_t images = Images(g, batch, threads);
    const size_t copy = CopyBytes(g, images);
    const int64_t pixels = images * g.pixels();
    return kCacheLine + copy + PanelTasks(panel_plans_.For(pixels, threads), pixels, threads).ScratchBytes();
  }

  void Run(const float* x, int64_t batch, int64_t height, int64_t width, const Epilogue& epilogue, float* y,
           const ParallelFor& parallel, void* scratch) const override {
    if (batch < 1) return;
    const Geometry g = MakeGeometry(attributes_, height, width);
    const std::vector<int64_t> offsets = Offsets(g);
    const int64_t chunk = Images(g, batch, parallel.threads);
    const int64_t x_image = attributes_.in_channels * height * width;
    const int64_t y_image = attributes_.out_channels * g.pixels();
    for (int64_t image = 0; image < batch; image += chunk) {
      Epilogue part = epilogue;
      if (part.residual != nullptr) part.residual += image * y_image;
      RunImages(g, offsets, x + image * x_image, std::min(chunk, batch - image), part, y + image * y_image,
                parallel, scratch);
    }
  }

 private:
  // Images that are copied and multiplied together: enough for whole panels on every thread, and no more, so
  // that the copy is still in the cache when it is read. X itself needs no such care.
  static int64_t Images(const Geometry& g, int64_t batch, int threads) {
    if (g.direct) return batch;
    const int64_t wanted = 8 * kPanelColumns * threads;
    return std::min(batch, (wanted + g.pixels() - 1) / g.pixels());
  }

  static size_t CopyBytes(const Geometry& g, int64_t images) {
    return g.direct ? 0 : RoundUp(static_cast<size_t>(images * g.image_stride) * sizeof(float), kCacheLine);
  }

  std::vector<int64_t> Offsets(const Geometry& g) const {
    std::vector<int64_t> offsets;
    offsets.reserve(static_cast<size_t>(matrix_.columns));
    for (int64_t channel = 0; channel < attributes_.in_channels; ++channel) {
      for (const int64_t tap : g.taps) offsets.push_back(channel * g.channel_stride + tap);
    }
    return offsets;
  }

  void RunImages(const Geometry& g, const std::vector<int64_t>& offsets, const float* x, int64_t images,
                 const Epilogue& epilogue, float* y, const ParallelFor& parallel, void* scratch) const {
    const float* source = x;
    unsigned char* rest = AlignUp<unsigned char>(scratch);
    if (!g.direct) {
      float* copy = reinterpret_cast<float*>(rest);
      RunTasks(parallel, parallel.threads, images * attributes_.in_channels, [&](int64_t, int64_t plane) {
        for (int64_t phase = 0; phase < g.planes(); ++phase) {
          CopyPhase(attributes_, g, g.phases[static_cast<size_t>(phase)], x + plane * g.height * g.width,
                    copy + plane * g.channel_stride + phase * g.plane_height * g.plane_width);
        }
      });
      source = copy;
      rest += CopyBytes(g, images);
    }
    const PanelPlan& plan = panel_plans_.For(images * g.pixels(), parallel.threads);
    const PanelTasks tasks(plan, images * g.pixels(), parallel.threads);
    RunPanels(isa_, plan, matrix_.columns, tasks, parallel, rest, [&](int64_t first, int64_t columns) {
      Pixels ends = {isa_, g, source, offsets.data(), epilogue, y, {}, {}};
      FindRuns(g, attributes_.out_channels, first, columns, &ends.sources, &ends.targets);
      return ends;
    });
  }

  const Isa& isa_;
  ConvAttributes attributes_;
  Matrix matrix_;
  PanelPlans panel_plans_;
};

}  // namespace

std::unique_ptr<ConvKernel> MakeConv(const Isa& isa, const ConvAttributes& attributes, const Matrix& matrix) {
  return std::make_unique<CsrConv>(isa, attributes, matrix);
}

}  // namespace csr
}  // namespace sparsify
