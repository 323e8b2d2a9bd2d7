// Two linear layers, one behind the other: y = second(W2 first(W1 x)).
//
// What the first layer makes of a panel of X is the second layer's panel already, so it is neither transposed
// nor written to memory: some hundred outputs at a time are finished in the second-level cache, and the
// second product adds what they bring to its waiting sums.
#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "family.h"
#include "panel_product.h"

namespace sparsify {
namespace csr {
namespace {

// Packed inputs, the hidden units at hand and the second layer's sums: what a second-level cache of 1 MB
// holds beside weights.
constexpr int64_t kPairFloats = 1 << 17;
constexpr int64_t kGroupsAThread = 3;  // of columns, at least

// How X's rows are cut into panels, and what a worker needs.
struct PairTasks {
  PairTasks(const Matrix& a, const Matrix& b, int64_t rows, int threads) {
    const int64_t groups = PanelTasks::Groups(rows);
    const int64_t most = std::min(MostGroups(a.block_rows), MostGroups(b.block_rows));
    panels = (groups + most - 1) / most;
    if (panels < 4 * threads) panels = std::min(groups, RoundUpTo(panels, threads));
    spacing = kSpacing[(groups + panels - 1) / panels];
    workers = std::min<int64_t>(threads, panels);
  }
  static int64_t RoundUpTo(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

  int64_t panels;
  int64_t spacing;
  int64_t workers;
};

// The plans of both layers for one spacing; parts of the first are whole tiles of the second.
struct PairPlans {
  PairPlans(const Matrix& a, const Matrix& b, int64_t spacing)
      : second(PanelPlan::OfEqualParts(b, PairTasks::RoundUpTo(b.rows, kGroup), spacing)),
        tiles_together(TilesTogether(a, b, spacing, second.depth())),
        first(PanelPlan::OfEqualParts(a, tiles_together * second.depth(), spacing)),
        inputs(first.tiles() * first.tile_floats()),
        hidden(tiles_together * second.depth() * spacing),
        sums(second.last_row(0) * spacing) {}
  size_t WorkerBytes() const { return static_cast<size_t>(inputs + hidden + sums) * sizeof(float); }

  PanelPlan second;
  int64_t tiles_together;
  PanelPlan first;
  int64_t inputs, hidden, sums;  // floats of each

 private:
  static int64_t TilesTogether(const Matrix& a, const Matrix& b, int64_t spacing, int64_t depth) {
    const int64_t left = kPairFloats - (a.columns + b.rows) * spacing;
    const int64_t most = (b.columns + depth - 1) / depth;
    return std::clamp<int64_t>(left / (depth * spacing), 1, most);
  }
};

class CsrFeedForward final : public FeedForwardKernel {
 public:
  CsrFeedForward(const Isa& isa, const Matrix& a, const Matrix& b)
      : isa_(isa),
        a_(a),
        b_(b),
        a_attributes_{a.rows, a.columns},
        b_attributes_{b.rows, b.columns},
        a_pages_(std::make_shared<PackedPages>(a)),
        b_pages_(std::make_shared<PackedPages>(b)),
        a_alone_(MakeLinear(isa, a_attributes_, a, a_pages_)),
        b_alone_(MakeLinear(isa, b_attributes_, b, b_pages_)) {}

  const LinearAttributes& first() const override { return a_attributes_; }
  const LinearAttributes& second() const override { return b_attributes_; }

  size_t ScratchBytes(int64_t rows, int threads) const override {
    if (rows < 1) return 0;
    if (Together(rows, threads)) {
      const PairTasks tasks(a_, b_, rows, threads);
      return static_cast<size_t>(tasks.workers) * Plans(tasks.spacing).WorkerBytes() + kCacheLine;
    }
    return HiddenBytes(rows) + kCacheLine +
           std::max(a_alone_->ScratchBytes(rows, threads), b_alone_->ScratchBytes(rows, threads));
  }

  void Run(const float* x, int64_t rows, const Epilogue& first_epilogue, const Epilogue& second_epilogue,
           float* y, const ParallelFor& parallel, void* scratch) const override {
    if (rows < 1) return;
    if (!Together(rows, parallel.threads)) {
      float* hidden = AlignUp<float>(scratch);
      void* rest = reinterpret_cast<unsigned char*>(hidden) + HiddenBytes(rows);
      a_alone_->Run(x, rows, first_epilogue, hidden, parallel, rest);
      b_alone_->Run(hidden, rows, second_epilogue, y, parallel, rest);
      return;
    }
    const PairTasks tasks(a_, b_, rows, parallel.threads);
    const PairPlans& plans = Plans(tasks.spacing);
    unsigned char* memory = AlignUp<unsigned char>(scratch);
    RunTasks(parallel, tasks.workers, tasks.panels, [&](int64_t worker, int64_t panel) {
      const int64_t first = PanelTasks::Begin(rows, panel, tasks.panels);
      const int64_t count = PanelTasks::Begin(rows, panel + 1, tasks.panels) - first;
      const RowMajor operand = {x + first * a_.columns, a_.columns, y + first * b_.rows, b_.rows, count};
      Epilogue ending = second_epilogue;
      if (ending.residual != nullptr) ending.residual += first * b_.rows;
      RunPanel(plans, operand, first_epilogue, ending,
               reinterpret_cast<float*>(memory + static_cast<size_t>(worker) * plans.WorkerBytes()));
    });
  }

 private:
  // Few rows do without panels, or leave threads without wide ones, which layers by themselves cut by
  // outputs; and inputs and sums that do not stay in the cache would cost more than what lies between the
  // layers.
  bool Together(int64_t rows, int threads) const {
    const bool enough = threads == 1 || PanelTasks::Groups(rows) >= kGroupsAThread * threads;
    return enough && rows > isa_.few_rows && (a_.columns + b_.rows) * kPanelColumns <= kPairFloats;
  }
  size_t HiddenBytes(int64_t rows) const {
    return RoundUp(static_cast<size_t>(rows * a_.rows) * sizeof(float), kCacheLine);
  }

  const PairPlans& Plans(int64_t spacing) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<PairPlans>& plans = plans_[spacing];
    if (plans == nullptr) {
      plans = std::make_unique<PairPlans>(a_, b_, spacing);
      a_pages_->Derived();
      b_pages_->Derived();
    }
    return *plans;
  }

  void RunPanel(const PairPlans& plans, const RowMajor& operand, const Epilogue& first_epilogue,
                const Epilogue& second_epilogue, float* memory) const {
    const int groups = static_cast<int>(PanelTasks::Groups(operand.rows));
    const int64_t spacing = kSpacing[groups];
    float* hidden = memory + plans.inputs;
    float* sums = hidden + plans.hidden;
    for (int64_t t = 0; t < plans.first.tiles(); ++t) {
      const int64_t input = t * plans.first.depth();
      isa_.pack_rows(operand.x + input, operand.x_stride, operand.rows,
                     std::min(plans.first.depth(), a_.columns - input),
                     memory + t * plans.first.tile_floats(), groups);
    }
    if (!plans.second.BeginsSums()) std::memset(sums, 0, static_cast<size_t>(plans.sums) * sizeof(float));
    for (int part = 0; part < plans.first.parts(); ++part) {
      const int64_t first = plans.first.first_row(part);
      if (!plans.first.BeginsSums()) {
        std::memset(hidden, 0, static_cast<size_t>(plans.hidden) * sizeof(float));
      }
      for (int64_t t = 0; t < plans.first.tiles(); ++t) {
        isa_.multiply(plans.first.Segment(t, part), memory + t * plans.first.tile_floats(), hidden, groups);
      }
      const int64_t last = std::min(plans.first.last_row(part), a_.rows);
      Finish(first, last, first_epilogue, groups, hidden);
      for (int64_t t = first / plans.second.depth(); t * plans.second.depth() < last; ++t) {
        isa_.multiply(plans.second.Segment(t, 0), hidden + (t * plans.second.depth() - first) * spacing, sums,
                      groups);
      }
    }
    isa_.store_rows(sums, 0, b_.rows, operand.rows, second_epilogue, operand.y, operand.y_stride, groups);
  }

  // Bias and activation of hidden units [first, last), in place: a panel is an image of one row of pixels.
  void Finish(int64_t first, int64_t last, const Epilogue& epilogue, int groups, float* hidden) const {
    const OutputRun run = {0, 0, int64_t{groups} * kGroup};
    Epilogue part = epilogue;
    if (part.bias != nullptr) part.bias += first;
    isa_.store_pixels(hidden, 0, last - first, &run, 1, part, hidden, kSpacing[groups], groups);
  }

  const Isa& isa_;
  Matrix a_, b_;
  LinearAttributes a_attributes_, b_attributes_;
  std::shared_ptr<const PackedPages> a_pages_, b_pages_;
  std::unique_ptr<LinearKernel> a_alone_, b_alone_;
  mutable std::mutex mutex_;
  mutable std::map<int64_t, std::unique_ptr<PairPlans>> plans_;  // by spacing
};

}  // namespace

std::unique_ptr<FeedForwardKernel> MakeFeedForward(const Isa& isa, const Matrix& a, const Matrix& b) {
  return std::make_unique<CsrFeedForward>(isa, a, b);
}

}  // namespace csr
}  // namespace sparsify
