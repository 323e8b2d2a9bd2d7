// Runs a panel plan over the columns of X: the part that linear and convolution share.
#ifndef SPARSIFY_KERNELS_CSR_PANEL_PRODUCT_H_
#define SPARSIFY_KERNELS_CSR_PANEL_PRODUCT_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "../../base/aligned.h"
#include "../api.h"
#include "packed_pages.h"
#include "panel_plan.h"

namespace sparsify {
namespace csr {

// Calls function(worker, task) once for each task < count. Workers, at most `workers` at once, take the next
// task when they have finished one, so uneven tasks and an overestimated number of threads do no harm.
template <class Function>
void RunTasks(const ParallelFor& parallel, int64_t workers, int64_t count, Function function) {
  workers = std::min(workers, count);
  if (workers <= 1 || parallel.threads <= 1) {
    for (int64_t task = 0; task < count; ++task) function(int64_t{0}, task);
    return;
  }
  struct Shared {
    Function* function;
    int64_t count;
    std::atomic<int64_t> next;
  } shared = {&function, count, {0}};
  parallel.run(
      parallel.context, static_cast<size_t>(workers),
      [](void* argument, size_t worker) {
        Shared& s = *static_cast<Shared*>(argument);
        for (int64_t task = s.next.fetch_add(1); task < s.count; task = s.next.fetch_add(1)) {
          (*s.function)(static_cast<int64_t>(worker), task);
        }
      },
      &shared);
}

// The plans of one weight, made when first asked for. Safe from several threads.
class PanelPlans {
 public:
  // The pages must live as long.
  PanelPlans(const Matrix& matrix, const PackedPages& pages) : matrix_(matrix), pages_(pages) {}

  // For X of this many columns.
  const PanelPlan& For(int64_t columns, int threads) const {
    const int64_t groups = std::min<int64_t>(MostGroups(matrix_.block_rows), (columns + kGroup - 1) / kGroup);
    const int64_t spacing = kSpacing[groups];
    const std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<PanelPlan>& plan = plans_[{spacing, threads}];
    if (plan == nullptr) {
      plan = std::make_unique<PanelPlan>(matrix_, threads, spacing);
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
                     std::make_shared<PanelPlan>(matrix_, threads, spacing, tile)});
    pages_.Derived();
    return flat_.back().plan;
  }

 private:
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
// panel on a page of its own: one strip writes 256 bytes there and leaves. Sums of all strips stay in half of
// a second-level cache of 1 MB, and enough panels are left for the threads to share evenly.
constexpr int64_t kWideFloats = 1 << 16;
constexpr int64_t kMostStrips = 8;
constexpr int64_t kPanelsAThread = 8;
constexpr int64_t kStoredRows = 8;

inline int64_t WideColumns(const PanelPlan& plan, int64_t total, int threads, int64_t runs) {
  const int64_t rows = plan.last_row(plan.parts() - 1);
  const int64_t strips = (total + kPanelColumns - 1) / kPanelColumns;
  int64_t together = std::min(kMostStrips, kWideFloats / (rows * kPanelColumns));
  together = std::min({together, strips, runs * strips / (kPanelsAThread * threads)});
  return std::max<int64_t>(1, together) * kPanelColumns;
}

// How `total` columns are cut into tasks: by panel, and by block of rows as well where panels alone would
// leave threads idle. Where there are several runs of so many columns, no panel holds columns of two.
struct PanelTasks {
  PanelTasks(const PanelPlan& plan, int64_t total, int threads, int64_t panel = kPanelColumns,
             int64_t runs = 1)
      : columns(total),
        panel_columns(panel),
        run_panels((total + panel - 1) / panel),
        panels(runs * run_panels) {
    const bool even = panels % threads == 0 || panels >= 4 * threads;
    parts = even ? 1 : plan.parts();
    workers = std::min<int64_t>(threads, panels * parts);
    const int64_t groups = std::min<int64_t>(plan.most_groups(), (columns + kGroup - 1) / kGroup);
    strip = plan.most_groups() * kGroup;
    const int64_t rows = parts == 1 ? plan.last_row(plan.parts() - 1) : plan.largest_part();
    const int64_t row_bytes = kSpacing[groups] * static_cast<int64_t>(sizeof(float));
    tile_bytes = static_cast<size_t>(plan.tile_floats()) * sizeof(float);
    panel_floats = rows * kSpacing[groups];
    const int64_t strips = (std::min(columns, panel_columns) + strip - 1) / strip;
    worker_bytes = tile_bytes + static_cast<size_t>(strips * rows * row_bytes);
  }
  size_t ScratchBytes() const { return static_cast<size_t>(workers) * worker_bytes + kCacheLine; }

  int64_t columns;        // of a run
  int64_t panel_columns;  // at most
  int64_t run_panels;
  int64_t panels;
  int64_t parts;
  int64_t workers;
  int64_t strip;         // columns that are multiplied together
  int64_t panel_floats;  // waiting sums of a strip
  size_t tile_bytes;
  size_t worker_bytes;
};

// make(run, first_column, columns) tells how these columns are read and written: its result's
// Pack(first_input, depth, tile, groups) fills a tile (columns beyond the last are multiplied too, so with
// zeros: stale denormals there would cost a hundred cycles each), Store(first_row, last_row, panel, groups)
// writes finished sums. All strips of a panel pass over a tile's weights while these are in the cache.
template <class Make>
void RunPanels(const Isa& isa, const PanelPlan& plan, const Matrix& matrix, const PanelTasks& tasks,
               const ParallelFor& parallel, void* scratch, Make make) {
  unsigned char* memory = AlignUp<unsigned char>(scratch);
  RunTasks(parallel, tasks.workers, tasks.panels * tasks.parts, [&](int64_t worker, int64_t task) {
    float* tile = reinterpret_cast<float*>(memory + static_cast<size_t>(worker) * tasks.worker_bytes);
    float* panel = tile + tasks.tile_bytes / sizeof(float);
    const int64_t run = task / tasks.parts / tasks.run_panels;
    const int64_t first_column = task / tasks.parts % tasks.run_panels * tasks.panel_columns;
    const int64_t columns = std::min(tasks.panel_columns, tasks.columns - first_column);
    const int first_part = tasks.parts == 1 ? 0 : static_cast<int>(task % tasks.parts);
    const int last_part = tasks.parts == 1 ? plan.parts() : first_part + 1;
    const int64_t first_row = plan.first_row(first_part);
    const int64_t last_row = plan.last_row(last_part - 1);
    using Ends = decltype(make(run, first_column, columns));
    std::vector<Ends> ends;
    std::vector<int> groups;
    for (int64_t c = 0; c < columns; c += tasks.strip) {
      const int64_t width = std::min(tasks.strip, columns - c);
      ends.push_back(make(run, first_column + c, width));
      groups.push_back(static_cast<int>((width + kGroup - 1) / kGroup));
    }
    std::memset(panel, 0, ends.size() * static_cast<size_t>(tasks.panel_floats) * sizeof(float));
    for (int64_t t = 0; t < plan.tiles(); ++t) {
      const int64_t first_input = t * plan.depth();
      for (size_t s = 0; s < ends.size(); ++s) {
        ends[s].Pack(first_input, std::min(plan.depth(), matrix.columns - first_input), tile, groups[s]);
        float* sums = panel + static_cast<int64_t>(s) * tasks.panel_floats;
        for (int part = first_part; part < last_part; ++part) {
          isa.multiply(plan.Segment(t, part), tile,
                       sums + (plan.first_row(part) - first_row) * kSpacing[groups[s]], groups[s]);
        }
      }
    }
    // With several strips, few rows at a time: what is written to a page is written in one go.
    const int64_t end = std::min(last_row, matrix.rows);
    const int64_t step = tasks.panel_columns > kPanelColumns ? kStoredRows : end - first_row;
    for (int64_t row = first_row; row < end; row += step) {
      for (size_t s = 0; s < ends.size(); ++s) {
        const float* sums = panel + static_cast<int64_t>(s) * tasks.panel_floats;
        ends[s].Store(row, std::min(row + step, end), sums + (row - first_row) * kSpacing[groups[s]],
                      groups[s]);
      }
    }
  });
}

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_PANEL_PRODUCT_H_
