// Convolution as a panel product: columns are output pixels of all images, inputs are (channel, tap) pairs.
//
// Each tile of inputs is gathered into its panel just before it is used, from X itself: padding is a mask of
// each tap, so nothing of the size of an unfolded or a padded input is ever written. Where an output row is
// as wide as an input row, columns run on over rows and a register of pixels is one load. Strides are dealt
// with once, in a copy of the input with one plane for each phase (y mod stride, x mod stride).
#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "conv_flat.h"
#include "conv_geometry.h"
#include "conv_rows.h"
#include "family.h"
#include "panel_product.h"

namespace sparsify {
namespace csr {
namespace {

constexpr int64_t kLargestIndex = int64_t{1} << 40;
constexpr int64_t kCopiedPlanes = 16;  // of a task

// The phases of one channel, each plane_height rows of plane_width.
void CopyPhases(const Isa& isa, const ConvAttributes& a, const Geometry& g, const float* x, float* target) {
  for (const Phase& phase : g.phases) {
    for (int64_t i = 0; i < phase.rows && phase.columns > 0; ++i) {
      const float* source = x + (i * a.strides[0] + phase.top) * g.width + phase.left;
      // Rows of a full plane in one call.
      const int64_t rows = phase.columns == g.plane_width ? phase.rows : int64_t{1};
      isa.take_every(source, rows, a.strides[0] * g.width, phase.columns, a.strides[1],
                     target + i * g.plane_width);
      i += rows - 1;
    }
    target += g.plane();
  }
}

// Output pixels [first, first + count) of consecutive images as the columns of a panel.
class Pixels {
 public:
  Pixels(const ConvAttributes& a, const Geometry& g, int64_t first, int64_t count)
      : attributes_(a),
        geometry_(g),
        rows_(static_cast<size_t>(a.kernel[0])),
        columns_(static_cast<size_t>(a.kernel[1])) {
    masks_.reserve(static_cast<size_t>((count + kGroup) / kGroup) * g.taps.size());
    const int64_t pixels = g.pixels();
    const bool flat = g.out_width == g.plane_width;
    for (int64_t column = 0; column < count;) {
      const int64_t image = (first + column) / pixels, pixel = (first + column) % pixels;
      const int64_t y = pixel / g.out_width, x = pixel % g.out_width, lane = column % kGroup;
      int64_t length = std::min({count - column, pixels - pixel, kGroup - lane});
      if (!flat) length = std::min(length, g.out_width - x);
      if (lane == 0) group_end_.push_back(0);
      if (column == 0 || pixel == 0) {
        targets_.push_back({image * a.out_channels * pixels + pixel, column, 0});
      }
      targets_.back().length += length;
      sources_.push_back(image * g.image_stride + y * g.plane_width + x - lane);
      AddMasks(y, x, lane, length);
      group_end_.back() = static_cast<uint32_t>(sources_.size());
      column += length;
    }
  }

  PixelPanel panel() const {
    return {sources_.data(),
            masks_.data(),
            group_end_.data(),
            geometry_.offsets.data(),
            attributes_.kernel[0] * attributes_.kernel[1],
            geometry_.channel_stride};
  }
  const std::vector<OutputRun>& targets() const { return targets_; }

 private:
  // The lanes of a piece that begins at output pixel (y, x), for each tap those inside the image.
  void AddMasks(int64_t y, int64_t x, int64_t lane, int64_t length) {
    const auto bits = [](int64_t count) { return (uint32_t{1} << count) - 1; };
    std::fill(rows_.begin(), rows_.end(), 0u);
    std::fill(columns_.begin(), columns_.end(), 0u);
    for (int64_t end = lane + length; lane < end; ++y, x = 0) {
      // Lane i is column i - shift of this row.
      const int64_t shift = lane - x, stop = std::min(end, shift + geometry_.out_width);
      for (size_t r = 0; r < rows_.size(); ++r) {
        const Inside& inside = geometry_.rows[r];
        if (y >= inside.first && y < inside.last) rows_[r] |= bits(stop) & ~bits(lane);
      }
      for (size_t s = 0; s < columns_.size(); ++s) {
        const Inside& inside = geometry_.columns[s];
        const int64_t first = std::max(lane, inside.first + shift),
                      last = std::min(stop, inside.last + shift);
        if (first < last) columns_[s] |= bits(last) & ~bits(first);
      }
      lane = stop;
    }
    for (const uint32_t row : rows_) {
      for (const uint32_t column : columns_) masks_.push_back(static_cast<uint16_t>(row & column));
    }
  }

  const ConvAttributes& attributes_;
  const Geometry& geometry_;
  std::vector<uint32_t> rows_, columns_;
  std::vector<int64_t> sources_;
  std::vector<uint16_t> masks_;
  std::vector<uint32_t> group_end_;
  std::vector<OutputRun> targets_;
};

// A panel of pixels, its operands and what happens to it.
struct PixelEnds {
  const Isa& isa;
  const float* x;
  const Epilogue& epilogue;
  float* y;
  int64_t plane;
  Pixels pixels;

  void Pack(int64_t first_input, int64_t depth, float* tile, int groups) const {
    isa.pack_pixels(x, pixels.panel(), first_input, depth, tile, groups);
  }
  void Store(int64_t first, int64_t last, const float* panel, int groups) const {
    isa.store_pixels(panel, first, last, pixels.targets().data(), pixels.targets().size(), epilogue, y, plane,
                     groups);
  }
};

// The same for a panel of flattened rows. Tiles are whole channels.
struct FlatEnds {
  const Isa& isa;
  const float* x;
  const Epilogue& epilogue;
  float* y;
  int64_t plane, taps, channel_stride;
  FlatPixels pixels;

  void Pack(int64_t first_input, int64_t depth, float* tile, int) const {
    isa.pack_flat(x + first_input / taps * channel_stride, pixels.panel(), depth / taps, tile);
  }
  void Store(int64_t first, int64_t last, const float* panel, int groups) const {
    isa.store_pixels(panel, first, last, pixels.targets().data(), pixels.targets().size(), epilogue, y, plane,
                     groups);
  }
};

class CsrConv final : public ConvKernel {
 public:
  CsrConv(const Isa& isa, const ConvAttributes& attributes, const Matrix& matrix)
      : isa_(isa), attributes_(attributes), matrix_(matrix), pages_(matrix), panel_plans_(matrix, pages_) {}

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
    size_t bytes = PanelBytes(g, images, threads);
    // The last images of a batch may be too few to take the form that the others take.
    if (batch % images != 0) bytes = std::max(bytes, PanelBytes(g, batch % images, threads));
    return kCacheLine + CopyBytes(g, images) + bytes;
  }

  void Run(const float* x, int64_t batch, int64_t height, int64_t width, const Epilogue& epilogue, float* y,
           const ParallelFor& parallel, void* scratch) const override {
    if (batch < 1) return;
    const Geometry g = MakeGeometry(attributes_, height, width);
    const int64_t chunk = Images(g, batch, parallel.threads);
    const int64_t x_image = attributes_.in_channels * height * width;
    const int64_t y_image = attributes_.out_channels * g.pixels();
    for (int64_t image = 0; image < batch; image += chunk) {
      Epilogue part = epilogue;
      if (part.residual != nullptr) part.residual += image * y_image;
      RunImages(g, x + image * x_image, std::min(chunk, batch - image), part, y + image * y_image, parallel,
                scratch);
    }
  }

  std::shared_ptr<const RowConv> Rows(int64_t width) const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto kept = rows_width_ == width ? rows_.lock() : nullptr) return kept;
    const std::shared_ptr<const RowConv> made = MakeRows(isa_, attributes_, matrix_, width);
    if (made != nullptr) pages_.Derived();
    rows_width_ = width;
    rows_ = made;
    return made;
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

  // Scratch memory for the panels of so many images, whose form is derived: no other than the one that they
  // take.
  size_t PanelBytes(const Geometry& g, int64_t images, int threads) const {
    const FlatShape shape(g);
    if (PrefersFlat(shape, g, matrix_, images)) {
      const auto plan = panel_plans_.ForFlat(shape.tile, shape.width, threads);
      const int64_t wide = WideColumns(*plan, shape.columns, threads, images);
      return PanelTasks(*plan, shape.columns, threads, wide, images).ScratchBytes();
    }
    const int64_t pixels = images * g.pixels();
    const PanelPlan& plan = panel_plans_.For(pixels, threads);
    return PanelTasks(plan, pixels, threads, WideColumns(plan, pixels, threads, 1)).ScratchBytes();
  }

  void RunImages(const Geometry& g, const float* x, int64_t images, const Epilogue& epilogue, float* y,
                 const ParallelFor& parallel, void* scratch) const {
    const float* source = x;
    unsigned char* rest = AlignUp<unsigned char>(scratch);
    if (!g.direct) {
      float* copy = reinterpret_cast<float*>(rest);
      CopyImages(g, x, images * attributes_.in_channels, copy, parallel);
      source = copy;
      rest += CopyBytes(g, images);
    }
    const bool apart = g.pixels() % kGroup != 0;  // planes are no whole lines
    const FlatShape shape(g);
    if (PrefersFlat(shape, g, matrix_, images)) {
      const auto plan = panel_plans_.ForFlat(shape.tile, shape.width, parallel.threads);
      const int64_t wide = WideColumns(*plan, shape.columns, parallel.threads, images);
      PanelTasks tasks(*plan, shape.columns, parallel.threads, wide, images);
      tasks.apart = apart;
      RunPanels(isa_, *plan, matrix_, tasks, parallel, rest,
                [&](int64_t image, int64_t first, int64_t columns) {
                  return FlatEnds{isa_,
                                  source,
                                  epilogue,
                                  y,
                                  g.pixels(),
                                  static_cast<int64_t>(g.taps.size()),
                                  g.channel_stride,
                                  FlatPixels(attributes_, g, shape, image, first, columns)};
                });
      return;
    }
    const PanelPlan& plan = panel_plans_.For(images * g.pixels(), parallel.threads);
    const int64_t pixels = images * g.pixels();
    PanelTasks tasks(plan, pixels, parallel.threads, WideColumns(plan, pixels, parallel.threads, 1));
    tasks.apart = apart;
    RunPanels(isa_, plan, matrix_, tasks, parallel, rest, [&](int64_t, int64_t first, int64_t columns) {
      return PixelEnds{isa_, source, epilogue, y, g.pixels(), Pixels(attributes_, g, first, columns)};
    });
  }

  void CopyImages(const Geometry& g, const float* x, int64_t channels, float* copy,
                  const ParallelFor& parallel) const {
    const int64_t tasks = (channels + kCopiedPlanes - 1) / kCopiedPlanes;
    RunTasks(parallel, parallel.threads, tasks, [&](int64_t, int64_t task) {
      const int64_t last = std::min(channels, (task + 1) * kCopiedPlanes);
      for (int64_t channel = task * kCopiedPlanes; channel < last; ++channel) {
        CopyPhases(isa_, attributes_, g, x + channel * g.height * g.width, copy + channel * g.channel_stride);
      }
    });
  }

  const Isa& isa_;
  ConvAttributes attributes_;
  Matrix matrix_;
  PackedPages pages_;
  PanelPlans panel_plans_;
  mutable std::mutex mutex_;
  mutable int64_t rows_width_ = 0;
  mutable std::weak_ptr<const RowConv> rows_;  // the latest; whoever asked for it keeps it
};

}  // namespace

std::unique_ptr<ConvKernel> MakeConv(const Isa& isa, const ConvAttributes& attributes, const Matrix& matrix) {
  return std::make_unique<CsrConv>(isa, attributes, matrix);
}

}  // namespace csr
}  // namespace sparsify
