// How two layers, one behind the other, are shared out to threads (see feed_forward.cc).
#ifndef SPARSIFY_KERNELS_CSR_PAIR_TASKS_H_
#define SPARSIFY_KERNELS_CSR_PAIR_TASKS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "panel_product.h"

namespace sparsify {
namespace csr {

// How X's rows are cut into panels.
struct PairTasks {
  PairTasks(const Matrix& a, const Matrix& b, int64_t rows_of_x, int threads_of_it)
      : rows(rows_of_x),
        threads(threads_of_it),
        panels(PanelCount(PanelTasks::Groups(rows),
                          std::min(MostGroups(a.block_rows), MostGroups(b.block_rows)), true)),
        spacing(kSpacing[(PanelTasks::Groups(rows) + panels - 1) / panels]) {}
  static int64_t RoundUpTo(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
  int64_t Begin(int64_t panel) const { return PanelTasks::Begin(rows, panel, panels); }
  int64_t Groups(int64_t panel) const { return PanelTasks::Groups(Begin(panel + 1) - Begin(panel)); }
  // Whether threads take panels as they come; else each has its share of all work.
  bool Whole() const { return threads == 1 || panels >= kWholePanels * threads; }

  int64_t rows;
  int threads;
  int64_t panels;
  int64_t spacing;
};

// Parts of the hidden units of one panel.
struct Share {
  int64_t panel;
  int first_part, last_part;
};

// All work in equal shares, one a thread, so that a panel may have several threads: each sums what its hidden
// units bring, and the last to finish adds these sums, always in the same order, and stores them.
class Shares {
 public:
  Shares(const PairTasks& tasks, int parts)
      : missing_(static_cast<size_t>(tasks.panels)), of_(static_cast<size_t>(tasks.threads)) {
    const int64_t all = PanelTasks::Groups(tasks.rows) * parts;
    int64_t before = 0;
    for (int64_t panel = 0; panel < tasks.panels; ++panel) {
      const int64_t groups = tasks.Groups(panel);
      const auto cut = [&](int64_t unit) {
        return static_cast<int>(std::clamp<int64_t>((unit - before + groups / 2) / groups, 0, parts));
      };
      for (int thread = 0; thread < tasks.threads; ++thread) {
        const Share share = {panel, cut(all * thread / tasks.threads),
                             cut(all * (thread + 1) / tasks.threads)};
        if (share.first_part == share.last_part) continue;
        of_[static_cast<size_t>(thread)].push_back(share);
        ++missing_[static_cast<size_t>(panel)].count;
      }
      before += groups * parts;
    }
  }

  const std::vector<Share>& Of(int64_t thread) const { return of_[static_cast<size_t>(thread)]; }
  // Whether it was the panel's last.
  bool Finish(const Share& share) {
    return missing_[static_cast<size_t>(share.panel)].count.fetch_sub(1, std::memory_order_acq_rel) == 1;
  }
  // A thread has two places for sums: one for the panel that another began, one for those that it begins.
  static int Place(const Share& share) { return share.first_part > 0 ? 0 : 1; }
  // Calls function(thread, place) for every share of a panel, in order.
  template <class Function>
  void ForEach(int64_t panel, Function function) const {
    for (size_t thread = 0; thread < of_.size(); ++thread) {
      for (const Share& share : of_[thread]) {
        if (share.panel == panel) function(static_cast<int64_t>(thread), Place(share));
      }
    }
  }

 private:
  struct Missing {
    std::atomic<int> count{0};
  };
  std::vector<Missing> missing_;  // shares of each panel that are not finished
  std::vector<std::vector<Share>> of_;
};

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_PAIR_TASKS_H_
