// The order in which a segment's nodes give their rows, and how long each row is needed.
#ifndef SPARSIFY_KERNELS_CHAIN_ROWS_TASKS_H_
#define SPARSIFY_KERNELS_CHAIN_ROWS_TASKS_H_

#include <cstdint>
#include <vector>

#include "rows_plan.h"

namespace sparsify {
namespace chain {

// Rows [begin, end) of a map.
struct RowRange {
  int64_t begin = 0, end = 0;

  bool empty() const { return begin >= end; }
};

// The rows of its input, clipped to the map, that a node needs for these of its own.
RowRange InputRows(const RowNode& node, RowRange rows, int64_t input_height);

// Tasks that give one band of all maps that leave the segment. Each follows what it needs, as late as that
// allows.
std::vector<RowTask> PullRows(const std::vector<RowNode>& nodes, int64_t band, int64_t bands);

// For each row of a node's map the tasks that write it and read it last, by number. A row that nobody writes,
// since it was there before, counts as written where it is first read. -1: never.
struct RowLives {
  std::vector<int64_t> written, last;
};
std::vector<RowLives> FindLives(const std::vector<RowNode>& nodes, const std::vector<RowTask>& tasks);

// Room for so many rows keeps all that are still needed, with row y at y modulo that number.
int64_t RowsAtOnce(const RowLives& lives);

}  // namespace chain
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CHAIN_ROWS_TASKS_H_
