#include "rows_run.h"

#include <algorithm>
#include <cstring>

#include "../csr/compiler.h"
#include "../csr/panel_product.h"

namespace sparsify {
namespace chain {
namespace {

// Pixels of one row of all channels.
struct RowPixels {
  float* channel;  // the first
  int64_t stride;  // floats to the next
};

void CopyRow(const float* source, int64_t stride, int64_t channels, int64_t width, RowPixels target) {
  for (int64_t channel = 0; channel < channels; ++channel) {
    std::memcpy(target.channel + channel * target.stride, source + channel * stride,
                static_cast<size_t>(width) * sizeof(float));
  }
}

void FillMargins(int64_t channels, int64_t width, RowPixels row) {
  std::fill_n(row.channel - kRowMargin, kRowMargin, 0.0f);
  for (int64_t channel = 0; channel < channels; ++channel) {
    std::fill_n(row.channel + channel * row.stride + width, row.stride - width, 0.0f);
  }
}

// Rows of a plane lie far apart from one channel to the next, where no prefetcher looks for them.
void AskFor(const float* row, int64_t stride, int64_t channels, int64_t width) {
  for (int64_t channel = 0; channel < channels; ++channel, row += stride) {
    for (int64_t x = 0; x < width; x += kRowMargin) SPARSIFY_PREFETCH(row + x);
  }
}

// One band of one segment.
class BandRun {
 public:
  BandRun(const RowSegment& segment, int64_t band, const RowPlanes& planes, float* memory, void* scratch)
      : nodes_(segment.nodes), band_(band), planes_(planes), memory_(memory), scratch_(scratch) {}

  void Run(const std::vector<RowTask>& tasks) {
    for (const RowTask& task : tasks) {
      const RowNode& node = nodes_[static_cast<size_t>(task.node)];
      if (node.work == RowNode::Work::kConv) {
        RunConv(node, task);
        continue;
      }
      for (int64_t y = task.first; y < task.first + task.count; ++y) CopyOne(node, y);
    }
  }

 private:
  const RowNode& At(int32_t node) const { return nodes_[static_cast<size_t>(node)]; }

  // Channel 0 of row y.
  float* Row(const RowNode& node, int64_t y) const {
    return memory_ + node.offset + band_ * node.band_stride + y % node.capacity * node.row_floats() +
           kRowMargin;
  }

  // Where a node's row y goes.
  RowPixels Target(const RowNode& node, int64_t y) const {
    if (node.kept != RowNode::Kept::kPlanes) return {Row(node, y), RowSpacing(node.size.width)};
    return {planes_.targets[static_cast<size_t>(node.value)] + y * node.size.width, node.size.pixels()};
  }

  void CopyOne(const RowNode& node, int64_t y) const {
    const int64_t width = node.size.width, plane = node.size.pixels();
    const RowPixels target = Target(node, y);
    if (node.work == RowNode::Work::kCopy) {
      CopyRow(Row(At(node.input), y), RowSpacing(width), node.channels, width, target);
    } else {
      const float* row = planes_.maps[static_cast<size_t>(node.value)] + y * width;
      CopyRow(row, plane, node.channels, width, target);
      if (y + 1 < node.size.height) AskFor(row + width, plane, node.channels, width);
    }
    if (node.kept != RowNode::Kept::kPlanes) FillMargins(node.channels, width, target);
  }

  void RunConv(const RowNode& node, const RowTask& task) {
    const RowNode& input = At(node.input);
    const int64_t first = task.first * node.stride - node.pad;
    inputs_.clear();
    for (int64_t y = first; y < first + (task.count - 1) * node.stride + node.reach; ++y) {
      inputs_.push_back(y >= 0 && y < input.size.height ? Row(input, y) : nullptr);
    }
    const bool planes = node.kept == RowNode::Kept::kPlanes;
    rows_.clear();
    residuals_.clear();
    for (int64_t y = task.first; y < task.first + task.count; ++y) {
      rows_.push_back(Target(node, y).channel);
      if (node.residual >= 0) residuals_.push_back(Row(At(node.residual), y));
    }
    const RowTarget target = {rows_.data(), Target(node, task.first).stride, planes,
                              node.residual >= 0 ? residuals_.data() : nullptr};
    node.conv->Run(inputs_.data(), task.count, node.ending, target, scratch_);
  }

  const std::vector<RowNode>& nodes_;
  const int64_t band_;
  const RowPlanes& planes_;
  float* memory_;
  void* scratch_;
  std::vector<const float*> inputs_, residuals_;
  std::vector<float*> rows_;
};

}  // namespace

void RunRows(const RowPlan& plan, const RowPlanes& planes, const ParallelFor& parallel, float* memory,
             unsigned char* scratch) {
  for (const RowSegment& segment : plan.segments) {
    csr::RunTasks(parallel, plan.bands, plan.bands, [&](int64_t, int64_t band) {
      BandRun(segment, band, planes, memory, scratch + static_cast<size_t>(band) * plan.scratch_bytes)
          .Run(segment.bands[static_cast<size_t>(band)]);
    });
  }
}

}  // namespace chain
}  // namespace sparsify
