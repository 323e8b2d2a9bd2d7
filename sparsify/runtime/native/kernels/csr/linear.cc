// y = activation(W x + bias + residual) for row-major x: few rows without panels, more rows as panels.
#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "family.h"
#include "panel_product.h"
#include "slot_plan.h"

namespace sparsify {
namespace csr {
namespace {

// Less work than this, in bytes of weights read, is not worth waking another thread.
constexpr int64_t kBytesPerThread = 32 * 1024;

// Rows of X up to which blocks are taken in place: 16 / R broadcasts for each of them cost less than slots.
constexpr int64_t RowsInPlace(int block_rows) {
  return block_rows >= 8 ? 6 : block_rows == 4 ? 3 : block_rows == 2 ? 1 : 0;
}

// Rows of X as the columns of a panel.
struct Rows {
  const Isa& isa;
  RowMajor operand;
  Epilogue epilogue;

  void Pack(int64_t first_input, int64_t depth, float* tile, int groups) const {
    isa.pack_rows(operand.x + first_input, operand.x_stride, operand.rows, depth, tile, groups);
  }
  void Store(int64_t first, int64_t last, const float* panel, int groups) const {
    isa.store_rows(panel, first, last, operand.rows, epilogue, operand.y, operand.y_stride, groups);
  }
};

class CsrLinear final : public LinearKernel {
 public:
  CsrLinear(const Isa& isa, const LinearAttributes& attributes, const Matrix& matrix,
            std::shared_ptr<const PackedPages> pages)
      : isa_(isa),
        attributes_(attributes),
        matrix_(matrix),
        pages_(std::move(pages)),
        panel_plans_(matrix, *pages_) {}

  const LinearAttributes& attributes() const override { return attributes_; }

  size_t ScratchBytes(int64_t rows, int threads) const override {
    return rows <= isa_.few_rows ? 0
                                 : PanelTasks(panel_plans_.For(rows, threads), rows, threads).ScratchBytes();
  }

  void Run(const float* x, int64_t rows, const Epilogue& epilogue, float* y, const ParallelFor& parallel,
           void* scratch) const override {
    if (rows < 1) return;
    const RowMajor operand = {x, attributes_.in_features, y, attributes_.out_features, rows};
    if (rows <= isa_.few_rows) {
      if (isa_.blocks != nullptr && matrix_.narrow != nullptr && rows <= RowsInPlace(matrix_.block_rows)) {
        return RunLines(isa_.blocks, operand, epilogue, parallel);
      }
      if (isa_.dot != nullptr) return RunLines(isa_.dot, operand, epilogue, parallel);
      return RunSlots(operand, epilogue, parallel);
    }
    RunPanel(operand, epilogue, parallel, scratch);
  }

 private:
  const SlotPlan& Slots() const {
    std::call_once(slots_made_, [this] {
      slots_ = std::make_unique<SlotPlan>(matrix_);
      pages_->Derived();
    });
    return *slots_;
  }

  template <class T, class Function>
  static void RunRanges(const T* totals, int64_t size, int64_t bytes, const ParallelFor& parallel,
                        Function function) {
    const int64_t most = std::max<int64_t>(1, bytes / kBytesPerThread);
    const int64_t parts = std::min<int64_t>(parallel.threads, most);
    const std::vector<int64_t> bounds = BalancedBounds(totals, size, parts);
    RunTasks(parallel, parts, static_cast<int64_t>(bounds.size()) - 1, [&](int64_t, int64_t part) {
      function(bounds[static_cast<size_t>(part)], bounds[static_cast<size_t>(part) + 1]);
    });
  }

  void RunSlots(const RowMajor& operand, const Epilogue& epilogue, const ParallelFor& parallel) const {
    const SlotPlan& plan = Slots();
    RunRanges(plan.totals().data(), plan.groups(), plan.totals().back(), parallel,
              [&](int64_t first, int64_t last) {
                for (int64_t group = first; group < last; ++group) {
                  isa_.slots(plan.Group(group), operand, group * kLanes,
                             std::min((group + 1) * kLanes, matrix_.rows), epilogue);
                }
              });
  }

  void RunLines(void (*function)(const PackedRows&, const RowMajor&, int64_t, int64_t, const Epilogue&),
                const RowMajor& operand, const Epilogue& epilogue, const ParallelFor& parallel) const {
    pages_->ReadInPlace();
    const PackedRows rows = {matrix_.pointers, matrix_.narrow,     matrix_.wide,
                             matrix_.values,   matrix_.block_rows, matrix_.rows};
    RunRanges(matrix_.pointers, matrix_.lines(), (4 * matrix_.block_rows + 2) * matrix_.blocks, parallel,
              [&](int64_t first, int64_t last) { function(rows, operand, first, last, epilogue); });
  }

  void RunPanel(const RowMajor& operand, const Epilogue& epilogue, const ParallelFor& parallel,
                void* scratch) const {
    const PanelPlan& plan = panel_plans_.For(operand.rows, parallel.threads);
    const PanelTasks tasks(plan, operand.rows, parallel.threads);
    RunPanels(isa_, plan, matrix_, tasks, parallel, scratch, [&](int64_t, int64_t first, int64_t columns) {
      RowMajor part = operand;
      part.x += first * part.x_stride;
      part.y += first * part.y_stride;
      part.rows = columns;
      Epilogue ending = epilogue;
      if (ending.residual != nullptr) ending.residual += first * part.y_stride;
      return Rows{isa_, part, ending};
    });
  }

  const Isa& isa_;
  LinearAttributes attributes_;
  Matrix matrix_;
  std::shared_ptr<const PackedPages> pages_;
  PanelPlans panel_plans_;
  mutable std::once_flag slots_made_;
  mutable std::unique_ptr<SlotPlan> slots_;
};

}  // namespace

std::unique_ptr<LinearKernel> MakeLinear(const Isa& isa, const LinearAttributes& attributes,
                                         const Matrix& matrix, std::shared_ptr<const PackedPages> pages) {
  if (pages == nullptr) pages = std::make_shared<PackedPages>(matrix);
  return std::make_unique<CsrLinear>(isa, attributes, matrix, std::move(pages));
}

}  // namespace csr
}  // namespace sparsify
