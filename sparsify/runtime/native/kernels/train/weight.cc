#include "weight.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "../csr/compiler.h"
#include "../csr/panel_product.h"

namespace sparsify {
namespace train {
namespace {

constexpr int64_t kPartRows = 800;    // 200 KB of waiting sums
constexpr int64_t kFewestRows = 128;  // shorter parts have too few rows with equal numbers of positions

}  // namespace

int PartCount(int64_t rows, int threads) {
  const int64_t share = std::max(1, threads);
  const int64_t wanted = (rows + kPartRows - 1) / kPartRows;
  const int64_t most = std::max<int64_t>(1, rows / kFewestRows);
  return static_cast<int>(std::min(most, (wanted + share - 1) / share * share));
}

Weight::Weight(Topology topology, int threads)
    : topology_(std::move(topology)),
      plan_(topology_, PartCount(topology_.rows, threads), ProductStrip(topology_)) {
  if (plan_.strip() == csr::kPanelColumns) return;
  sampled_ = std::make_unique<Plan>(topology_, PartCount(topology_.rows, threads), csr::kPanelColumns);
}

void Weight::Gather(const float* weight, float* values, const ParallelFor& parallel) const {
  csr::RunTasks(parallel, parallel.threads, plan_.parts(), [&](int64_t, int64_t task) {
    const int part = static_cast<int>(task);
    const uint32_t* inputs = topology_.inputs.data();
    const uint32_t* slots = plan_.slots().data();
    const uint32_t* pointers = topology_.pointers.data();
    const int64_t last_row = plan_.last_row(part);
    for (int64_t row = plan_.first_row(part); row < last_row; ++row) {
      const float* line = weight + row * topology_.columns;
      const uint32_t first = pointers[row], end = pointers[row + 1];
      // Rows are read where they lie, mostly in memory: ask for the next one's lines meanwhile.
      const uint32_t soon = row + 1 < last_row ? pointers[row + 2] - end : 0;
      for (uint32_t i = 0; i < soon; ++i) SPARSIFY_PREFETCH(line + topology_.columns + inputs[end + i]);
      for (uint32_t i = first; i < end; ++i) values[slots[i]] = line[inputs[i]];
    }
  });
}

void Weight::Scatter(int part, const float* gradients, bool zeroed, float* weight) const {
  const Plan& plan = sampled();
  const uint32_t* inputs = topology_.inputs.data();
  const uint32_t* slots = plan.slots().data();
  const uint32_t* pointers = topology_.pointers.data();
  const uint32_t first_slot = static_cast<uint32_t>(plan.first_slot(part));
  const size_t columns = static_cast<size_t>(topology_.columns);
  const int64_t last_row = plan.last_row(part);
  std::vector<float> zeros(zeroed ? 0 : columns, 0.0f);
  for (int64_t row = plan.first_row(part); row < last_row; ++row) {
    float* target = weight + static_cast<size_t>(row) * columns;
    const uint32_t first = pointers[row], end = pointers[row + 1];
    float* line = zeroed ? target : zeros.data();
    const uint32_t soon = zeroed && row + 1 < last_row ? pointers[row + 2] - end : 0;
    for (uint32_t i = 0; i < soon; ++i) SPARSIFY_PREFETCH_TO_WRITE(target + columns + inputs[end + i]);
    for (uint32_t i = first; i < end; ++i) line[inputs[i]] = gradients[slots[i] - first_slot];
    if (zeroed) continue;
    std::memcpy(target, line, columns * sizeof(float));
    for (uint32_t i = first; i < end; ++i) line[inputs[i]] = 0.0f;
  }
}

TransposedWeight::TransposedWeight(const Topology& transposed, const std::vector<uint32_t>& source,
                                   const Plan& plan, int threads)
    : plan_(transposed, PartCount(transposed.rows, threads), ProductStrip(transposed)),
      slots_(source.size()) {
  for (size_t i = 0; i < source.size(); ++i) slots_[plan_.slots()[i]] = plan.slots()[source[i]];
}

void TransposedWeight::Gather(const float* values, float* transposed, const ParallelFor& parallel) const {
  csr::RunTasks(parallel, parallel.threads, plan_.parts(), [&](int64_t, int64_t task) {
    const int part = static_cast<int>(task);
    const int64_t end = plan_.first_slot(part + 1);
    for (int64_t i = plan_.first_slot(part); i < end; ++i) {
      transposed[i] = values[slots_[static_cast<size_t>(i)]];
    }
  });
}

}  // namespace train
}  // namespace sparsify
