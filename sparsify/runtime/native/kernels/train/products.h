// The two products of a training step over a plan: with the values (forward, and the input gradient through
// the transposed plan), and sampled at the active positions (the weight gradient). What columns are and where
// they lie is the caller's: rows of a matrix for a linear layer, pixels for a convolution.
#ifndef SPARSIFY_KERNELS_TRAIN_PRODUCTS_H_
#define SPARSIFY_KERNELS_TRAIN_PRODUCTS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "../../base/aligned.h"
#include "../api.h"
#include "../csr/panel_product.h"
#include "plan.h"
#include "sample.h"

namespace sparsify {
namespace train {

// Memory of the calling thread that stays from call to call, since the threads are those of a pool.
class Scratch {
 public:
  // At least `floats` floats on a cache line, with whatever they held.
  float* Get(int64_t floats) {
    if (floats > size_) {
      buffer_ = AlignedBuffer(static_cast<size_t>(floats) * sizeof(float));
      size_ = floats;
    }
    return buffer_.as<float>();
  }

 private:
  AlignedBuffer buffer_;
  int64_t size_ = 0;
};

// Of a task, and of the caller whose tasks read it: values, and images in another form.
enum class Memory { kTask, kCall, kInputs, kOutputs };
template <Memory M>
Scratch& ThreadScratch() {
  thread_local Scratch scratch;
  return scratch;
}

inline int64_t RoundUpRow(int64_t floats) { return (floats + csr::kGroup - 1) / csr::kGroup * csr::kGroup; }

struct Range {
  int first, last;
};

// Consecutive parts as the units of work: few enough rows for their sums to stay in a second-level cache, and
// enough units for `threads` threads that share `strips` strips of columns each (none: rows alone are
// shared).
inline std::vector<Range> PartRanges(const Plan& plan, int64_t strips, int threads) {
  constexpr int64_t kSumFloats = 100 * 1024;
  const int64_t most_rows = kSumFloats / plan.strip();
  const bool enough = strips > 0 && (strips % threads == 0 || strips >= 4 * threads);
  const int most_parts = enough ? plan.parts() : std::max(1, plan.parts() / threads);
  std::vector<Range> ranges;
  for (int part = 0; part < plan.parts(); ++part) {
    if (!ranges.empty() && part - ranges.back().first < most_parts &&
        plan.last_row(part) - plan.first_row(ranges.back().first) <= most_rows) {
      ranges.back().last = part + 1;
    } else {
      ranges.push_back({part, part + 1});
    }
  }
  return ranges;
}

inline int Groups(int64_t columns) { return static_cast<int>((columns + csr::kGroup - 1) / csr::kGroup); }

// make(first_column, columns) tells how these columns of X are read and those of Y written: its result's
// Pack(first_input, depth, tile, groups) fills a tile, zero beyond the last column, and
// Store(first_row, last_row, panel, groups) writes finished sums.
template <class Make>
void RunProduct(const csr::Isa& isa, const Plan& plan, const float* values, int64_t columns,
                const ParallelFor& parallel, Make make) {
  const int64_t strip = plan.strip(), strips = (columns + strip - 1) / strip;
  const std::vector<Range> ranges = PartRanges(plan, strips, parallel.threads);
  const int64_t tasks = strips * static_cast<int64_t>(ranges.size());
  csr::RunTasks(parallel, parallel.threads, tasks, [&](int64_t, int64_t task) {
    const Range range = ranges[static_cast<size_t>(task) % ranges.size()];
    const int64_t first_column = task / static_cast<int64_t>(ranges.size()) * strip;
    const int64_t width = std::min(strip, columns - first_column);
    const int groups = Groups(width);
    const int64_t spacing = csr::kSpacing[groups];
    const int64_t first_row = plan.first_row(range.first), last_row = plan.last_row(range.last - 1);
    const int64_t tile_floats = plan.depth() * spacing, panel_floats = (last_row - first_row) * spacing;
    float* tile = ThreadScratch<Memory::kTask>().Get(tile_floats + panel_floats);
    float* panel = tile + tile_floats;
    std::memset(panel, 0, static_cast<size_t>(panel_floats) * sizeof(float));
    auto ends = make(first_column, width);
    for (int64_t t = 0; t < plan.tiles(); ++t) {
      const int64_t first_input = t * plan.depth();
      ends.Pack(first_input, std::min(plan.depth(), plan.columns() - first_input), tile, groups);
      for (int part = range.first; part < range.last; ++part) {
        isa.multiply(plan.Segment(t, part, values), tile,
                     panel + (plan.first_row(part) - first_row) * spacing, groups);
      }
    }
    ends.Store(first_row, last_row, panel, groups);
  });
}

// inputs(first_column, columns) and outputs(first_column, columns) read X and dY like `make` above. When all
// columns of a part are done, finish(part, gradients, sums) gets the gradients of its slots and the sums of
// its rows of dY.
template <class Inputs, class Outputs, class Finish>
void RunSampled(const Sampler& sampler, const Plan& plan, int64_t columns, const ParallelFor& parallel,
                Inputs inputs, Outputs outputs, Finish finish) {
  const int64_t strip = plan.strip(), spacing = csr::kSpacing[Groups(strip)];
  const std::vector<Range> ranges = PartRanges(plan, 0, parallel.threads);
  csr::RunTasks(parallel, parallel.threads, static_cast<int64_t>(ranges.size()), [&](int64_t, int64_t task) {
    const Range range = ranges[static_cast<size_t>(task)];
    const int64_t first_row = plan.first_row(range.first), rows = plan.last_row(range.last - 1) - first_row;
    const int64_t first_slot = plan.first_slot(range.first);
    const int64_t slots = plan.first_slot(range.last) - first_slot;
    const int64_t tile_floats = plan.depth() * spacing;
    float* tile = ThreadScratch<Memory::kTask>().Get(tile_floats + rows * spacing + RoundUpRow(rows) + slots);
    float* panel = tile + tile_floats;
    float* sums = panel + rows * spacing;
    float* gradients = sums + RoundUpRow(rows);
    std::memset(sums, 0, static_cast<size_t>(rows) * sizeof(float));
    if (columns == 0) std::memset(gradients, 0, static_cast<size_t>(slots) * sizeof(float));
    for (int64_t first = 0; first < columns; first += strip) {
      const int64_t width = std::min(strip, columns - first);
      const int groups = Groups(width);
      outputs(first, width).Pack(first_row, rows, panel, groups);
      sampler.add_rows(panel, rows, groups, sums);
      auto x = inputs(first, width);
      for (int64_t t = 0; t < plan.tiles(); ++t) {
        const int64_t first_input = t * plan.depth();
        x.Pack(first_input, std::min(plan.depth(), plan.columns() - first_input), tile, groups);
        for (int part = range.first; part < range.last; ++part) {
          const float* lines = panel + (plan.first_row(part) - first_row) * csr::kSpacing[groups];
          sampler.sample(plan.Segment(t, part, nullptr), tile, lines, groups, first > 0,
                         gradients + plan.Slot(t, part) - first_slot);
        }
      }
    }
    for (int part = range.first; part < range.last; ++part) {
      finish(part, gradients + plan.first_slot(part) - first_slot, sums + plan.first_row(part) - first_row);
    }
  });
}

// The same where columns are many and rows few: tasks take columns, and sum up all slots for themselves.
// There are always as many tasks, so that the result does not depend on the number of threads.
template <class Inputs, class Outputs, class Finish>
void RunSampledByColumns(const Sampler& sampler, const Plan& plan, int64_t columns,
                         const ParallelFor& parallel, Inputs inputs, Outputs outputs, Finish finish) {
  constexpr int64_t kMostTasks = 8;
  const int64_t strip = plan.strip(), strips = (columns + strip - 1) / strip;
  const int64_t spacing = csr::kSpacing[Groups(strip)];
  const int64_t tasks = std::max<int64_t>(1, std::min(kMostTasks, strips));
  const std::vector<Range> ranges = PartRanges(plan, 0, 1);
  const int64_t rows = RoundUpRow(plan.rows());
  const int64_t found = rows + RoundUpRow(plan.first_slot(plan.parts()));  // sums, gradients
  float* all = ThreadScratch<Memory::kCall>().Get(tasks * found);
  csr::RunTasks(parallel, parallel.threads, tasks, [&](int64_t, int64_t task) {
    const int64_t first_strip = strips * task / tasks, last_strip = strips * (task + 1) / tasks;
    float* sums = all + task * found;
    float* gradients = sums + rows;
    std::memset(sums, 0, static_cast<size_t>(first_strip == last_strip ? found : rows) * sizeof(float));
    float* tile = ThreadScratch<Memory::kTask>().Get((plan.depth() + plan.rows()) * spacing);
    float* panel = tile + plan.depth() * spacing;
    for (int64_t s = first_strip; s < last_strip; ++s) {
      const int64_t width = std::min(strip, columns - s * strip);
      const int groups = Groups(width);
      auto x = inputs(s * strip, width);
      auto dy = outputs(s * strip, width);
      for (const Range& range : ranges) {
        const int64_t first_row = plan.first_row(range.first);
        const int64_t count = plan.last_row(range.last - 1) - first_row;
        dy.Pack(first_row, count, panel, groups);
        sampler.add_rows(panel, count, groups, sums + first_row);
        for (int64_t t = 0; t < plan.tiles(); ++t) {
          const int64_t first_input = t * plan.depth();
          x.Pack(first_input, std::min(plan.depth(), plan.columns() - first_input), tile, groups);
          for (int part = range.first; part < range.last; ++part) {
            const float* lines = panel + (plan.first_row(part) - first_row) * csr::kSpacing[groups];
            sampler.sample(plan.Segment(t, part, nullptr), tile, lines, groups, s > first_strip,
                           gradients + plan.Slot(t, part));
          }
        }
      }
    }
  });
  csr::RunTasks(parallel, parallel.threads, plan.parts(), [&](int64_t, int64_t task) {
    const int part = static_cast<int>(task);
    const auto add = [&](int64_t first, int64_t last) {
      for (int64_t k = 1; k < tasks; ++k) {
        for (int64_t i = first; i < last; ++i) all[i] += all[k * found + i];
      }
    };
    add(plan.first_row(part), plan.last_row(part));
    add(rows + plan.first_slot(part), rows + plan.first_slot(part + 1));
    finish(part, all + rows + plan.first_slot(part), all + plan.first_row(part));
  });
}

}  // namespace train
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_TRAIN_PRODUCTS_H_
