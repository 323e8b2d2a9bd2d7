// Runs the part of a chain that is planned row by row, for one image.
#ifndef SPARSIFY_KERNELS_CHAIN_ROWS_RUN_H_
#define SPARSIFY_KERNELS_CHAIN_ROWS_RUN_H_

#include <vector>

#include "../api.h"
#include "rows_plan.h"

namespace sparsify {
namespace chain {

// Planes of one image, by value of the chain: outer maps are read, what leaves the plan is written, the rest
// is not looked at.
struct RowPlanes {
  std::vector<const float*> maps;
  std::vector<float*> targets;
};

// `memory`: plan.floats, on a cache line. `scratch`: plan.bands times plan.scratch_bytes.
void RunRows(const RowPlan& plan, const RowPlanes& planes, const ParallelFor& parallel, float* memory,
             unsigned char* scratch);

}  // namespace chain
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_CHAIN_ROWS_RUN_H_
