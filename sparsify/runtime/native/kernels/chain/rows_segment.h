// One segment of a chain's rows: its nodes, and their tasks in order.
#ifndef SPARSIFY_KERNELS_CHAIN_ROWS_SEGMENT_H_
#define SPARSIFY_KERNELS_CHAIN_ROWS_SEGMENT_H_

#include <vector>

#include "rows_plan.h"

namespace sparsify {
namespace chain {

// Who reads a value: the first and the last of the steps that run on rows, -1 where none does, and whether
// anyone beyond them does, or the chain's user.
struct Readers {
  int64_t first = -1, last = -1;
  bool beyond = false;
};

// Steps [begin, end). Everything of the nodes is set but where their rows lie.
RowSegment MakeSegment(const RowChain& chain, const std::vector<Readers>& readers, int64_t begin, int64_t end,
                       int64_t bands);

}  // namespace chain
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CHAIN_ROWS_SEGMENT_H_
