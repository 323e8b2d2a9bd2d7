#include "rows_run.h"

#include <algorithm>
#include <cstring>

#include "../csr/panel_product.h"

namespace sparsify {
namespace chain {
namespace {

// Zeros around a row of this form.
void FillMargins(int64_t channels, int64_t width, float* row) {
  const int64_t spacing = RowSpacing(width);
  std::fill_n(row - kRowMargin, kRowMargin, 0.0f);
  for (int64_t channel = 0; channel < channels; ++channel) {
    std::fill_n(row + channel * spacing + width, spacing - width, 0.0f);
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
      rows_.clear();
      for (int64_t y = task.first; y < task.first + task.count; ++y) rows_.push_back(Target(node, y));
      if (node.work == RowNode::Work::kConv) {
        RunConv(node, task);
      } else {
        RunCopy(node, task);
      }
    }
  }

 private:
  const RowNode& At(int32_t node) const { return nodes_[static_cast<size_t>(node)]; }

  // Channel 0 of row y.
  float* Row(const RowNode& node, int64_t y) const {
    return memory_ + node.offset + band_ * node.band_stride + y % node.capacity * node.row_floats() +
           kRowMargin;
  }

  // Channel 0 of where row y goes, and the floats from there to the next channel.
  float* Target(const RowNode& node, int64_t y) const {
    if (node.kept != RowNode::Kept::kPlanes) return Row(node, y);
    return planes_.targets[static_cast<size_t>(node.value)] + y * node.size.width;
  }
  static int64_t Stride(const RowNode& node) {
    return node.kept == RowNode::Kept::kPlanes ? node.size.pixels() : RowSpacing(node.size.width);
  }

  // Channel by channel, since rows of a plane lie behind each other.
  void RunCopy(const RowNode& node, const RowTask& task) {
    const int64_t width = node.size.width;
    int64_t stride = node.size.pixels();
    inputs_.clear();
    for (int64_t y = task.first; y < task.first + task.count; ++y) {
      if (node.work == RowNode::Work::kImport) {
        inputs_.push_back(planes_.maps[static_cast<size_t>(node.value)] + y * width);
      } else {
        stride = Stride(At(node.input));
        inputs_.push_back(Row(At(node.input), y));
      }
    }
    for (int64_t channel = 0; channel < node.channels; ++channel) {
      for (size_t i = 0; i < rows_.size(); ++i) {
        std::memcpy(rows_[i] + channel * Stride(node), inputs_[i] + channel * stride,
                    static_cast<size_t>(width) * sizeof(float));
      }
    }
    if (node.kept == RowNode::Kept::kPlanes) return;
    for (float* row : rows_) FillMargins(node.channels, width, row);
  }

  void RunConv(const RowNode& node, const RowTask& task) {
    const RowNode& input = At(node.input);
    const int64_t first = task.first * node.stride - node.pad;
    inputs_.clear();
    for (int64_t y = first; y < first + (task.count - 1) * node.stride + node.reach; ++y) {
      inputs_.push_back(y >= 0 && y < input.size.height ? Row(input, y) : nullptr);
    }
    residuals_.clear();
    for (int64_t y = task.first; y < task.first + task.count && node.residual >= 0; ++y) {
      residuals_.push_back(Row(At(node.residual), y));
    }
    const RowTarget target = {rows_.data(), Stride(node), node.kept == RowNode::Kept::kPlanes,
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
