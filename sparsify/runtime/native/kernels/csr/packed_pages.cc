#include "packed_pages.h"

#include "../../base/pages.h"

namespace sparsify {
namespace csr {

void PackedPages::Derived() const {
  if (in_place_.load(std::memory_order_relaxed)) return;
  const size_t blocks = static_cast<size_t>(matrix_.blocks);
  const size_t value_bytes = matrix_.values.type == ValueType::kFloat32 ? sizeof(float) : sizeof(uint16_t);
  PageOut(matrix_.values.data, blocks * static_cast<size_t>(matrix_.block_rows) * value_bytes);
  if (matrix_.narrow != nullptr) {
    PageOut(matrix_.narrow, blocks * sizeof(uint16_t));
  } else {
    PageOut(matrix_.wide, blocks * sizeof(int32_t));
  }
  PageOut(matrix_.pointers, (static_cast<size_t>(matrix_.lines()) + 1) * sizeof(int32_t));
}

}  // namespace csr
}  // namespace sparsify
