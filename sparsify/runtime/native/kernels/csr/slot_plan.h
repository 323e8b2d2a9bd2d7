// How a packed weight is visited when X has few rows: sixteen output rows as lanes, inputs in blocks of 32
// that fit two registers, so that a permute fetches the inputs of sixteen non-zeros at once.
//
// A block gets as many slots as pay; the non-zeros that find no slot go to the group's rest. The last block
// ends with the inputs, so it may begin inside the one before. Records of one group are sorted by their
// number of slots.
#ifndef SPARSIFY_KERNELS_CSR_SLOT_PLAN_H_
#define SPARSIFY_KERNELS_CSR_SLOT_PLAN_H_

#include <cstdint>
#include <vector>

#include "../../base/aligned.h"
#include "isa.h"
#include "packed.h"

namespace sparsify {
namespace csr {

class SlotPlan {
 public:
  explicit SlotPlan(const Matrix& matrix);

  int64_t groups() const { return static_cast<int64_t>(begins_.size()); }
  SlotGroup Group(int64_t group) const;
  // Bytes that come before a group; groups() + 1 totals.
  const std::vector<int64_t>& totals() const { return totals_; }

 private:
  struct Begin {
    size_t stream, mask, block, slot_class, class_count, rest, rest_count;
  };
  void AddGroup(const Matrix& matrix, int64_t first_row, std::vector<float>* stream);

  AlignedBuffer stream_;
  std::vector<float> rest_values_;
  std::vector<uint32_t> rest_inputs_;
  std::vector<uint8_t> rest_lanes_;
  std::vector<uint16_t> masks_;
  std::vector<uint32_t> blocks_;
  std::vector<SlotClass> classes_;
  std::vector<Begin> begins_;
  std::vector<int64_t> totals_;
};

}  // namespace csr
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CSR_SLOT_PLAN_H_
