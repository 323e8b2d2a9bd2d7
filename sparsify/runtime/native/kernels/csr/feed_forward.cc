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
#include <utility>
#include <vector>

#include "family.h"
#include "pair_tasks.h"

namespace sparsify {
namespace csr {
namespace {

// Hidden units at hand: what packed inputs and the second layer's sums leave of these floats, half of
// the second-level cache, and a share of what those take, as they are read anew for every part.
constexpr int64_t kHiddenShare = 4;
// Inputs and outputs of a pair, at most: wider ones fall out of the cache more often than they save.
constexpr int64_t kWidestPair = 4096;
// Of panels that threads share: groups of columns, and hidden units a thread.
constexpr int64_t kLeastGroups = 3;
constexpr int64_t kLeastUnits = 256;

// The plans of both layers for one spacing; parts of the first are whole tiles of the second, and where
// threads share panels as many for each of them.
struct PairPlans {
  PairPlans(const Matrix& a, const Matrix& b, int64_t spacing, int sharers)
      : second(PanelPlan::OfEqualParts(b, PairTasks::RoundUpTo(b.rows, kGroup), spacing)),
        tiles_together(TilesTogether(a, b, spacing, second.depth(), sharers)),
        first(PanelPlan::OfEqualParts(a, tiles_together * second.depth(), spacing)),
        inputs(first.tiles() * first.tile_floats()),
        hidden(tiles_together * second.depth() * spacing),
        sums(second.last_row(0) * spacing) {}

  PanelPlan second;
  int64_t tiles_together;
  PanelPlan first;
  int64_t inputs, hidden, sums;  // floats of each

 private:
  static int64_t TilesTogether(const Matrix& a, const Matrix& b, int64_t spacing, int64_t depth,
                               int sharers) {
    const int64_t used = (a.columns + b.rows) * spacing;
    const int64_t left = std::max(KeptFloats() - used, used / kHiddenShare);
    const int64_t all = (b.columns + depth - 1) / depth;
    const int64_t most = std::clamp<int64_t>(left / (depth * spacing), 1, all);
    for (int64_t tiles = most; 2 * tiles > most; --tiles) {
      if ((all + tiles - 1) / tiles % sharers == 0) return tiles;
    }
    return most;
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
      return static_cast<size_t>(threads) * WorkerBytes(Plans(tasks), tasks) + kCacheLine;
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
    const PairPlans& plans = Plans(tasks);
    const size_t bytes = WorkerBytes(plans, tasks);
    unsigned char* memory = AlignUp<unsigned char>(scratch);
    const auto of = [&](int64_t worker) {
      return reinterpret_cast<float*>(memory + static_cast<size_t>(worker) * bytes);
    };
    const Layers layers = {plans, {x, a_.columns, y, b_.rows, rows}, first_epilogue, second_epilogue};
    if (tasks.Whole()) {
      RunTasks(parallel, parallel.threads, tasks.panels, [&](int64_t worker, int64_t panel) {
        const Layers part = Of(layers, tasks, panel);
        float* sums = of(worker) + plans.inputs + plans.hidden;
        Sum(part, 0, plans.first.parts(), of(worker), sums);
        Store(part, sums);
      });
      return;
    }
    Shares shares(tasks, plans.first.parts());
    const auto place = [&](int64_t thread, int i) {
      return of(thread) + plans.inputs + plans.hidden + i * plans.sums;
    };
    RunTasks(parallel, parallel.threads, parallel.threads, [&](int64_t, int64_t thread) {
      for (const Share& share : shares.Of(thread)) {
        const Layers part = Of(layers, tasks, share.panel);
        float* sums = place(thread, Shares::Place(share));
        Sum(part, share.first_part, share.last_part, of(thread), sums);
        if (!shares.Finish(share)) continue;
        const int64_t floats = plans.second.last_row(0) * kSpacing[tasks.Groups(share.panel)];
        Store(part, AddShares(shares, share.panel, floats, place));
      }
    });
  }

 private:
  // Both layers on a panel of X, or on all of it.
  struct Layers {
    const PairPlans& plans;
    RowMajor operand;
    Epilogue first, second;
  };

  // Few rows do without panels. Threads share panels by hidden units, of which each needs some. And inputs
  // and sums that do not stay in the cache would cost more than what lies between the layers.
  bool Together(int64_t rows, int threads) const {
    if (rows <= isa_.few_rows || a_.columns + b_.rows > kWidestPair) return false;
    const PairTasks tasks(a_, b_, rows, threads);
    return tasks.Whole() ||
           (PanelTasks::Groups(rows) >= kLeastGroups && tasks.panels * a_.rows >= kLeastUnits * threads);
  }
  static size_t WorkerBytes(const PairPlans& plans, const PairTasks& tasks) {
    const int64_t floats = plans.inputs + plans.hidden + (tasks.Whole() ? 1 : 2) * plans.sums;
    return static_cast<size_t>(floats) * sizeof(float);
  }
  size_t HiddenBytes(int64_t rows) const {
    return RoundUp(static_cast<size_t>(rows * a_.rows) * sizeof(float), kCacheLine);
  }

  const PairPlans& Plans(const PairTasks& tasks) const {
    const int sharers = tasks.Whole() ? 1 : tasks.threads;
    const std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<PairPlans>& plans = plans_[{tasks.spacing, sharers}];
    if (plans == nullptr) {
      plans = std::make_unique<PairPlans>(a_, b_, tasks.spacing, sharers);
      a_pages_->Derived();
      b_pages_->Derived();
    }
    return *plans;
  }

  Layers Of(const Layers& all, const PairTasks& tasks, int64_t panel) const {
    const int64_t first = tasks.Begin(panel);
    Layers part = all;
    part.operand.x += first * a_.columns;
    part.operand.y += first * b_.rows;
    part.operand.rows = tasks.Begin(panel + 1) - first;
    if (part.second.residual != nullptr) part.second.residual += first * b_.rows;
    return part;
  }

  // sums = what hidden units of these parts bring to the outputs. `memory` holds packed inputs and them.
  void Sum(const Layers& layers, int first_part, int last_part, float* memory, float* sums) const {
    const PairPlans& plans = layers.plans;
    const RowMajor& operand = layers.operand;
    const int groups = static_cast<int>(PanelTasks::Groups(operand.rows));
    const int64_t spacing = kSpacing[groups];
    float* hidden = memory + plans.inputs;
    for (int64_t t = 0; t < plans.first.tiles(); ++t) {
      const int64_t input = t * plans.first.depth();
      isa_.pack_rows(operand.x + input, operand.x_stride, operand.rows,
                     std::min(plans.first.depth(), a_.columns - input),
                     memory + t * plans.first.tile_floats(), groups);
    }
    if (first_part > 0) {
      std::memset(sums, 0, static_cast<size_t>(plans.sums) * sizeof(float));
    }
    for (int part = first_part; part < last_part; ++part) {
      const int64_t first = plans.first.first_row(part);
      for (int64_t t = 0; t < plans.first.tiles(); ++t) {
        isa_.multiply(plans.first.Segment(t, part), memory + t * plans.first.tile_floats(), hidden, groups);
      }
      const int64_t last = std::min(plans.first.last_row(part), a_.rows);
      Finish(first, last, layers.first, groups, hidden);
      for (int64_t t = first / plans.second.depth(); t * plans.second.depth() < last; ++t) {
        isa_.multiply(plans.second.Segment(t, 0), hidden + (t * plans.second.depth() - first) * spacing, sums,
                      groups);
      }
    }
  }

  void Store(const Layers& layers, const float* sums) const {
    const RowMajor& operand = layers.operand;
    isa_.store_rows(sums, 0, b_.rows, operand.rows, layers.second, operand.y, operand.y_stride,
                    static_cast<int>(PanelTasks::Groups(operand.rows)));
  }

  // Where the first share of a panel has its sums, to which those of the others are added.
  template <class Place>
  static float* AddShares(const Shares& shares, int64_t panel, int64_t floats, Place place) {
    float* sums = nullptr;
    shares.ForEach(panel, [&](int64_t thread, int i) {
      const float* more = place(thread, i);
      if (sums == nullptr) {
        sums = place(thread, i);
        return;
      }
      for (int64_t j = 0; j < floats; ++j) sums[j] += more[j];
    });
    return sums;
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
  mutable std::map<std::pair<int64_t, int>, std::unique_ptr<PairPlans>> plans_;  // by spacing and sharers
};

}  // namespace

std::unique_ptr<FeedForwardKernel> MakeFeedForward(const Isa& isa, const Matrix& a, const Matrix& b) {
  return std::make_unique<CsrFeedForward>(isa, a, b);
}

}  // namespace csr
}  // namespace sparsify
