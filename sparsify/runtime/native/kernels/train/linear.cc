// y = W x + b over rows of x, and its gradients.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "../csr/compiler.h"
#include "../csr/family.h"
#include "layer.h"
#include "products.h"
#include "weight.h"

namespace sparsify {
namespace train {
namespace {

// Rows of one matrix as the columns of a panel that is read, and rows of another as those of one written.
struct Rows {
  const csr::Isa& isa;
  const float* x;
  int64_t x_stride;
  float* y;
  int64_t y_stride;
  int64_t count;
  const float* bias;

  void Pack(int64_t first_input, int64_t depth, float* tile, int groups) const {
    isa.pack_rows(x + first_input, x_stride, count, depth, tile, groups);
  }
  void Store(int64_t first, int64_t last, const float* panel, int groups) const {
    Epilogue epilogue;
    epilogue.bias = bias;
    const int64_t spacing = csr::kSpacing[groups];
    for (int64_t row = first; row < last; row += kStoreRows) {
      const int64_t end = std::min(row + kStoreRows, last);
      Ask(end, std::min(end + kStoreRows, last));
      isa.store_rows(panel + (row - first) * spacing, row, end, count, epilogue, y, y_stride, groups);
    }
  }

 private:
  // Rows of a panel that are written together. Their lines in y are asked for while the rows before them are
  // written: a processor waits for only a few of them at a time.
  static constexpr int64_t kStoreRows = 96;

  void Ask(int64_t first, int64_t last) const {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t row = first; row < last; row += csr::kGroup)
        SPARSIFY_PREFETCH_TO_WRITE(y + i * y_stride + row);
    }
  }
};

class SparseLinear final : public LinearLayer {
 public:
  SparseLinear(const csr::Isa& isa, Topology topology, int threads)
      : isa_(isa), sampler_(SamplerOf(isa)), weight_(std::move(topology), threads), threads_(threads) {}

  int64_t count() const override { return weight_.topology().count(); }

  void Gather(const float* weight, float* values, const ParallelFor& parallel) const override {
    weight_.Gather(weight, values, parallel);
  }

  void Forward(const float* x, int64_t batch, const float* values, const float* bias, float* y,
               const ParallelFor& parallel) const override {
    Product(weight_.plan(), values, x, batch, bias, y, parallel);
  }

  void Backward(const float* x, int64_t batch, const float* dy, const float* values,
                const Gradients& gradients, const ParallelFor& parallel) const override {
    if (gradients.input != nullptr) {
      const TransposedWeight& transposed = Transpose();
      float* gathered = ThreadScratch<Memory::kCall>().Get(count());
      transposed.Gather(values, gathered, parallel);
      Product(transposed.plan(), gathered, dy, batch, nullptr, gradients.input, parallel);
    }
    if (gradients.weight != nullptr) WeightGradient(x, batch, dy, gradients, parallel);
  }

 private:
  Rows Operand(const float* x, int64_t stride, int64_t first, int64_t count) const {
    return {isa_, x + first * stride, stride, nullptr, 0, count, nullptr};
  }

  void Product(const Plan& plan, const float* values, const float* x, int64_t batch, const float* bias,
               float* y, const ParallelFor& parallel) const {
    RunProduct(isa_, plan, values, batch, parallel, [&](int64_t first, int64_t count) {
      Rows rows = Operand(x, plan.columns(), first, count);
      rows.y = y + first * plan.rows();
      rows.y_stride = plan.rows();
      rows.bias = bias;
      return rows;
    });
  }

  void WeightGradient(const float* x, int64_t batch, const float* dy, const Gradients& gradients,
                      const ParallelFor& parallel) const {
    const Plan& plan = weight_.sampled();
    RunSampled(
        sampler_, plan, batch, parallel,
        [&](int64_t first, int64_t count) { return Operand(x, plan.columns(), first, count); },
        [&](int64_t first, int64_t count) { return Operand(dy, plan.rows(), first, count); },
        [&](int part, const float* values, const float* sums) {
          weight_.Scatter(part, values, gradients.zeroed, gradients.weight);
          if (gradients.bias != nullptr) {
            const int64_t rows = plan.last_row(part) - plan.first_row(part);
            std::memcpy(gradients.bias + plan.first_row(part), sums,
                        static_cast<size_t>(rows) * sizeof(float));
          }
        });
  }

  const TransposedWeight& Transpose() const {
    std::call_once(transposed_made_, [this] {
      std::vector<uint32_t> source;
      const Topology topology = Transposed(weight_.topology(), &source);
      transposed_ = std::make_unique<TransposedWeight>(topology, source, weight_.plan(), threads_);
    });
    return *transposed_;
  }

  const csr::Isa& isa_;
  const Sampler& sampler_;
  Weight weight_;
  int threads_;
  mutable std::once_flag transposed_made_;
  mutable std::unique_ptr<TransposedWeight> transposed_;
};

}  // namespace

std::unique_ptr<LinearLayer> MakeLinearLayer(const char* kernel, int64_t rows, int64_t columns,
                                             const int64_t* positions, int64_t count, int threads,
                                             std::string* error) {
  const csr::Isa* isa = csr::FindIsa(kernel, error);
  Topology topology;
  if (isa == nullptr || !MakeTopology(rows, columns, positions, count, &topology, error)) return nullptr;
  return std::make_unique<SparseLinear>(*isa, std::move(topology), threads);
}

}  // namespace train
}  // namespace sparsify
