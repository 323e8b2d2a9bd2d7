// Runs a panel plan over the columns of X: the part that linear and convolution share.
#ifndef SPARSIFY_KERNELS_CSR_PANEL_PRODUCT_H_
#define SPARSIFY_KERNELS_CSR_PANEL_PRODUCT_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "../../base/aligned.h"
#include "../../base/tuning.h"
#include "../api.h"
#include "packed_pages.h"
#include "panel_plan.h"

namespace sparsify {
namespace csr {

// Calls function(worker, task) once for each task < count. Each worker, at most `workers` at once, has a run
// of neighbouring tasks and then helps the others, so uneven tasks and an overestimated number of threads do
// no harm. Neighbours are kept together because they may write to the same cache lines: threads that took
// turns would do so at the same time.
template <class Function>
void RunTasks(const ParallelFor& parallel, int64_t workers, int64_t count, Function function) {
  workers = std::min(workers, count);
  if (workers <= 1 || parallel.threads <= 1) {
    for (int64_t task = 0; task < count; ++task) function(int64_t{0}, task);
    return;
  }
  struct alignas(kCacheLine) Next {
    std::atomic<int64_t> task;
  };
  struct Shared {
    Function* function;
    int64_t workers, count;
    std::vector<Next> next;
    int64_t Begin(int64_t worker) const { return count * worker / workers; }
  } shared = {&function, workers, count, std::vector<Next>(static_cast<size_t>(workers))};
  for (int64_t w = 0; w < workers; ++w) shared.next[static_cast<size_t>(w)].task = shared.Begin(w);
  parallel.run(
      parallel.context, static_cast<size_t>(workers),
      [](void* argument, size_t worker) {
        Shared& s = *static_cast<Shared*>(argument);
        const int64_t self = static_cast<int64_t>(worker);
        for (int64_t i = 0; i < s.workers; ++i) {
          const int64_t other = (self + i) % s.workers, end = s.Begin(other + 1);
          std::atomic<int64_t>& next = s.next[static_cast<size_t>(other)].task;
          for (int64_t task = next.fetch_add(1); task < end; task = next.fetch_add(1)) {
            (*s.function)(self, task);
          }
        }
      },
      &shared);
}

// Sums that wait for the next tile, and packed inputs that are kept for other rows: three eighths and half of
// the second-level cache, which leaves room for weights.
inline int64_t WaitingFloats() { return Tuned().l2_bytes * 3 / 8 / static_cast<int64_t>(sizeof(float)); }
inline int64_t KeptFloats() { return Tuned().l2_bytes / 2 / static_cast<int64_t>(sizeof(float)); }

// The plans of one weight, made when first asked for. Safe from several threads.
class PanelPlans {
 public:
  // The pages must live as long.
  PanelPlans(const Matrix& matrix, const PackedPages& pages) : matrix_(matrix), pages_(pages) {}

  // For X of this many columns.
  const PanelPlan& For(int64_t columns, int threads) const {
    const int64_t groups = (columns + kGroup - 1) / kGroup;
    const int64_t spacing = kSpacing[WidestPanel(groups, MostGroups(matrix_.block_rows))];
    const std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<PanelPlan>& plan = plans_[{spacing, threads}];
    if (plan == nullptr) {
      plan = std::make_unique<PanelPlan>(matrix_, Parts(spacing, threads), spacing);
      pages_.Derived();
    }
    return *plan;
  }

  // With a flat tile, which depends on the size of the image: only those of the last few sizes are kept.
  std::shared_ptr<const PanelPlan> ForFlat(const FlatTile& tile, int64_t spacing, int threads) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const FlatPlan& kept : flat_) {
      if (kept.spacing == spacing && kept.threads == threads && kept.floats == tile.floats &&
          kept.taps == tile.taps) {
        return kept.plan;
      }
    }
    if (flat_.size() >= kKeptSizes) flat_.erase(flat_.begin());
    flat_.push_back({spacing, threads, tile.floats, tile.taps,
                     std::make_shared<PanelPlan>(matrix_, Parts(spacing, threads), spacing, tile)});
    pages_.Derived();
    return flat_.back().plan;
  }

 private:
  // As many for every thread, and few enough rows in each that their sums can wait together.
  int Parts(int64_t spacing, int threads) const {
    const int64_t least = (matrix_.rows * spacing + WaitingFloats() - 1) / WaitingFloats();
    return static_cast<int>((least + threads - 1) / threads * threads);
  }

  static constexpr size_t kKeptSizes = 4;
  struct FlatPlan {
    int64_t spacing;
    int threads;
    int64_t floats;
    std::vector<int64_t> taps;
    std::shared_ptr<const PanelPlan> plan;
  };

  Matrix matrix_;
  const PackedPages& pages_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<int64_t, int>, std::unique_ptr<PanelPlan>> plans_;
  mutable std::vector<FlatPlan> flat_;  // oldest first
};

// Strips of 64 columns that a convolution takes together. Its outputs lie a plane apart, each row of the
// panel on a page of its own: one strip writes 256 bytes there and leaves. Sums of all strips stay in a
// quarter of the second-level cache, and enough panels are left for the threads to share evenly.
inline int64_t WideFloats() { return Tuned().l2_bytes / 4 / static_cast<int64_t>(sizeof(float)); }
constexpr int64_t kMostStrips = 8;
constexpr int64_t kPanelsAThread = 8;
constexpr int64_t kStoredRows = 8;

inline int64_t WideColumns(const PanelPlan& plan, int64_t total, int threads, int64_t runs) {
  const int64_t rows = plan.last_row(plan.parts() - 1);
  const int64_t strips = (total + kPanelColumns - 1) / kPanelColumns;
  int64_t together = std::min(kMostStrips, WideFloats() / (rows * kPanelColumns));
  together = std::min({together, strips, runs * strips / (kPanelsAThread * threads)});
  return std::max<int64_t>(1, together) * kPanelColumns;
}

// So many panels a thread are even enough: none is shared.
constexpr int64_t kWholePanels = 4;

// How `total` columns are cut into tasks: by panel, and by rows as well, in one share for each thread, where
// panels alone would leave threads idle. Where there are several runs of so many columns, no panel holds
// columns of two. Panels of a run, and strips of a panel, differ by one group of columns at most.
struct PanelTasks {
  PanelTasks(const PanelPlan& plan, int64_t total, int threads, int64_t panel = kPanelColumns,
             int64_t runs = 1)
      : columns(total),
        panel_columns(panel),
        run_panels(PanelCount(Groups(total), panel / kGroup, plan.wide() || plan.most_groups() < kMaxGroups)),
        panels(runs * run_panels),
        shares(panels % threads == 0 || panels >= kWholePanels * threads ? 1
                                                                         : std::min(threads, plan.parts())),
        workers(std::min<int64_t>(threads, panels * shares)),
        strips(Strips(plan, (Groups(total) + run_panels - 1) / run_panels)) {
    const int64_t spacing = kSpacing[std::min(plan.widest(), Groups(columns))];
    int64_t rows = 0;
    bool several = false;
    for (int share = 0; share < shares; ++share) {
      cuts.push_back(
          RowCuts(plan, plan.parts() * share / shares, plan.parts() * (share + 1) / shares, spacing));
      rows = std::max(rows, LargestCut(plan, cuts.back()));
      several = several || cuts.back().size() > 2;
    }
    panel_floats = rows * spacing;
    // Packed inputs are kept for the rows to come if the second-level cache holds them.
    kept_tiles = several && strips * plan.tiles() * plan.tile_floats() <= KeptFloats();
    tiles = kept_tiles ? strips * plan.tiles() : 1;
    tile_floats = plan.tile_floats();
    worker_bytes = static_cast<size_t>(tiles * tile_floats + strips * panel_floats) * sizeof(float);
  }
  static int64_t Groups(int64_t columns) { return (columns + kGroup - 1) / kGroup; }
  // Of a panel of so many groups.
  static int64_t Strips(const PanelPlan& plan, int64_t groups) {
    return PanelCount(groups, plan.most_groups(), plan.wide());
  }
  // The first column of panel i of a run, or of strip i of `count` of so many columns.
  static int64_t Begin(int64_t columns, int64_t i, int64_t count) {
    return std::min(columns, (Groups(columns) * i + count / 2) / count * kGroup);
  }
  size_t ScratchBytes() const { return static_cast<size_t>(workers) * worker_bytes + kCacheLine; }

  int64_t columns;        // of a run
  int64_t panel_columns;  // at most
  int64_t run_panels;
  int64_t panels;
  int shares;  // of the rows
  int64_t workers;
  int64_t strips;        // of a panel, columns that are multiplied together
  int64_t panel_floats;  // waiting sums of a strip
  // Of each share of the rows: parts of the plan between two of these have their sums wait together.
  std::vector<std::vector<int>> cuts;
  // Threads keep a share through all panels, instead of most of a panel through all shares: for outputs where
  // panels meet inside cache lines.
  bool apart = false;
  bool kept_tiles;
  int64_t tiles;
  int64_t tile_floats;
  size_t worker_bytes;

 private:
  std::vector<int> RowCuts(const PanelPlan& plan, int first, int last, int64_t spacing) const {
    std::vector<int> bounds = {first};
    for (int part = first + 1; part < last; ++part) {
      const int64_t rows = plan.last_row(part) - plan.first_row(bounds.back());
      if (rows * spacing * strips > WaitingFloats()) bounds.push_back(part);
    }
    bounds.push_back(last);
    return bounds;
  }
  static int64_t LargestCut(const PanelPlan& plan, const std::vector<int>& bounds) {
    int64_t rows = 0;
    for (size_t i = 1; i < bounds.size(); ++i) {
      rows = std::max(rows, plan.last_row(bounds[i] - 1) - plan.first_row(bounds[i - 1]));
    }
    return rows;
  }
};

// make(run, first_column, columns) tells how these columns are read and written: its result's
// Pack(first_input, depth, tile, groups) fills a tile (columns beyond the last are multiplied too, so with
// zeros: stale denormals there would cost a hundred cycles each), Store(first_row, last_row, panel, groups)
// writes finished sums. All strips of a panel pass over a tile's weights while these are in the cache.
template <class Make>
void RunPanels(const Isa& isa, const PanelPlan& plan, const Matrix& matrix, const PanelTasks& tasks,
               const ParallelFor& parallel, void* scratch, Make make) {
  unsigned char* memory = AlignUp<unsigned char>(scratch);
  using Ends = decltype(make(int64_t{0}, int64_t{0}, int64_t{0}));
  struct Strip {
    Ends ends;
    int groups;
    bool single;  // one column in the last group
    float* tiles;
    float* sums;
  };
  RunTasks(parallel, tasks.workers, tasks.panels * tasks.shares, [&](int64_t worker, int64_t task) {
    float* tiles = reinterpret_cast<float*>(memory + static_cast<size_t>(worker) * tasks.worker_bytes);
    float* sums = tiles + tasks.tiles * tasks.tile_floats;
    const int64_t share = tasks.apart ? task / tasks.panels : task % tasks.shares;
    const int64_t panel = tasks.apart ? task % tasks.panels : task / tasks.shares;
    const int64_t run = panel / tasks.run_panels, index = panel % tasks.run_panels;
    const int64_t first_column = PanelTasks::Begin(tasks.columns, index, tasks.run_panels);
    const int64_t columns = PanelTasks::Begin(tasks.columns, index + 1, tasks.run_panels) - first_column;
    const int64_t count = PanelTasks::Strips(plan, PanelTasks::Groups(columns));
    std::vector<Strip> strips;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t first = PanelTasks::Begin(columns, i, count);
      const int64_t width = PanelTasks::Begin(columns, i + 1, count) - first;
      strips.push_back({make(run, first_column + first, width), static_cast<int>(PanelTasks::Groups(width)),
                        width % kGroup == 1 && !plan.flat(),
                        tiles + (tasks.kept_tiles ? i * plan.tiles() * tasks.tile_floats : 0),
                        sums + i * tasks.panel_floats});
    }
    const std::vector<int>& cuts = tasks.cuts[static_cast<size_t>(share)];
    for (size_t cut = 1; cut < cuts.size(); ++cut) {
      const int64_t first_row = plan.first_row(cuts[cut - 1]), last_row = plan.last_row(cuts[cut] - 1);
      for (int64_t t = 0; t < plan.tiles(); ++t) {
        const int64_t first_input = t * plan.depth();
        for (const Strip& strip : strips) {
          float* tile = strip.tiles + (tasks.kept_tiles ? t * tasks.tile_floats : 0);
          if (cut == 1 || !tasks.kept_tiles) {
            strip.ends.Pack(first_input, std::min(plan.depth(), matrix.columns - first_input), tile,
                            strip.groups);
          }
          for (int p = cuts[cut - 1]; p < cuts[cut]; ++p) {
            PanelSegment segment = plan.Segment(t, p);
            segment.single = strip.single;
            isa.multiply(segment, tile, strip.sums + (plan.first_row(p) - first_row) * kSpacing[strip.groups],
                         strip.groups);
          }
        }
      }
      // With several strips, few rows at a time: what is written to a page is written in one go.
      const int64_t end = std::min(last_row, matrix.rows);
      const int64_t step = tasks.panel_columns > kPanelColumns ? kStoredRows : end - first_row;
      for (int64_t row = first_row; row < end; row += step) {
        for (const Strip& strip : strips) {
          strip.ends.Store(row, std::min(row + step, end),
                           strip.sums + (row - first_row) * kSpacing[strip.groups], strip.groups);
        }
      }
    }
  });
}

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_PANEL_PRODUCT_H_
