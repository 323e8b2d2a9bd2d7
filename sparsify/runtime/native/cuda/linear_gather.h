// Few rows of X: bound by the bytes of W. A warp, or a whole block of threads where there are few lines,
// takes one line (R rows of W): its lanes read values and columns side by side and gather x from the caches.
//
//   grid   [ceil(lines / lines of a block), ceil(batch / N)]     block  [128]
#ifndef SPARSIFY_CUDA_LINEAR_GATHER_H_
#define SPARSIFY_CUDA_LINEAR_GATHER_H_

#include "device.h"

namespace sparsify::cuda {

// R rows of a line, N rows of X. A lane takes P values of an entry, so that Q lanes share one.
template <int R, int N>
__device__ inline void LinearGather(const LinearArguments& a) {
  constexpr int P = R < 4 ? R : 4, Q = R / P;
  __shared__ float partial[kGatherWarps][R][N];
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  const bool shared_line = a.warps_per_line > 1;
  const int64_t line = shared_line ? blockIdx.x : static_cast<int64_t>(blockIdx.x) * kGatherWarps + warp;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * N;
  const int part = lane % Q * P;
  float sums[P][N] = {};
  if (line < a.weight.lines) {
    const int end = a.weight.pointers[line + 1], step = a.warps_per_line * (kLanes / Q);
    const int skipped = (shared_line ? warp * (kLanes / Q) : 0) + lane / Q;
    for (int64_t i = a.weight.pointers[line] + static_cast<int64_t>(skipped); i < end; i += step) {
      const int column = Column(a.weight, i);
      float values[P];
      LoadValues<P>(a.weight, i * R + part, values);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float x = first + n < a.batch ? a.x[(first + n) * a.columns + column] : 0.0f;
#pragma unroll
        for (int p = 0; p < P; ++p) sums[p][n] += values[p] * x;
      }
    }
  }
#pragma unroll
  for (int p = 0; p < P; ++p) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int s = kLanes / 2; s >= Q; s /= 2) sums[p][n] += __shfl_xor_sync(kWholeWarp, sums[p][n], s);
      if (shared_line && lane < Q) partial[warp][part + p][n] = sums[p][n];
    }
  }
  if (shared_line) __syncthreads();
  if (line >= a.weight.lines || lane >= Q || (shared_line && warp > 0)) return;
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int64_t row = line * R + part + p;
      if (shared_line) {
        for (int w = 1; w < kGatherWarps; ++w) sums[p][n] += partial[w][part + p][n];
      }
      if (row < a.weight.rows && first + n < a.batch) {
        Finish(a.ending, sums[p][n], static_cast<int>(row), (first + n) * a.weight.rows + row, a.y);
      }
    }
  }
}

}  // namespace sparsify::cuda

#endif  // SPARSIFY_CUDA_LINEAR_GATHER_H_
