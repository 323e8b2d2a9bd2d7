// More rows of X: 32 V of them ("columns", one to V for each lane) wait in shared memory, transposed, a tile
// of inputs at a time, while the warps of a block pass over their lines' entries in that tile. An x that is
// read from shared memory serves R rows. Sums stay in registers; nothing is written but y.
//
//   grid   [ceil(batch / 32 V), ceil(lines / lines of a block), at most 65535]     block  [32 warps]
#ifndef SPARSIFY_CUDA_LINEAR_TILE_H_
#define SPARSIFY_CUDA_LINEAR_TILE_H_

#include "device.h"

namespace sparsify::cuda {

// Up to 32 entries of a line on their way from global memory to the lanes of one warp.
template <int R>
struct Staged {
  alignas(16) float values[kLanes][R];
  int inputs[kLanes];  // in the tile
};

// Stages the entries from `from` on that lie in a tile of `depth` inputs, and says how many of at most 32
// these are.
template <int R>
__device__ inline int Stage(const Weight& weight, int64_t from, int64_t end, int64_t first_input, int depth,
                            Staged<R>* staged) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t i = from + lane;
  const int column = i < end ? Column(weight, i) : 0;
  const bool here = i < end && column < first_input + depth;
  const unsigned taken = __ballot_sync(kWholeWarp, here);  // columns ascend: the first few lanes
  if (here) {
    constexpr int P = R < 4 ? R : 4;
    staged->inputs[lane] = static_cast<int>(column - first_input);
#pragma unroll
    for (int r = 0; r < R; r += P) LoadValues<P>(weight, i * R + r, staged->values[lane] + r);
  }
  __syncwarp();
  return __popc(taken);
}

template <int D, int C>
__device__ inline void LoadTile(const LinearArguments& a, int64_t first_input, int64_t first_column,
                                float (*tile)[C + 1]) {
  for (int i = static_cast<int>(threadIdx.x); i < D * C; i += static_cast<int>(blockDim.x)) {
    const int input = i % D, column = i / D;
    const bool inside = first_input + input < a.columns && first_column + column < a.batch;
    tile[input][column] = inside ? a.x[(first_column + column) * a.columns + first_input + input] : 0.0f;
  }
}

template <int R, int V>
__device__ inline void LinearTile(const LinearArguments& a) {
  constexpr int L = kTileLines<R>, W = kTileWarps<R>, C = kLanes * V, D = kTileElements / V;
  __shared__ float tile[D][C + 1];  // an odd stride: neither loading nor reading meets a bank twice
  __shared__ Staged<R> staged[W];
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * C;
  const int64_t groups = (a.weight.lines + L * W - 1) / (L * W);
  for (int64_t group = blockIdx.y; group < groups; group += gridDim.y) {
    const int64_t first_line = (group * W + warp) * L;
    float sums[L][R][V] = {};
    int next[L], end[L];
#pragma unroll
    for (int l = 0; l < L; ++l) {
      const bool inside = first_line + l < a.weight.lines;
      next[l] = inside ? a.weight.pointers[first_line + l] : 0;
      end[l] = inside ? a.weight.pointers[first_line + l + 1] : 0;
    }
    for (int64_t input = 0; input < a.columns; input += D) {
      __syncthreads();
      LoadTile<D, C>(a, input, first_column, tile);
      __syncthreads();
#pragma unroll
      for (int l = 0; l < L; ++l) {
        int count = kLanes;
        while (count == kLanes && next[l] < end[l]) {
          count = Stage<R>(a.weight, next[l], end[l], input, D, &staged[warp]);
          for (int e = 0; e < count; ++e) {
            const float* x = tile[staged[warp].inputs[e]] + lane;
            float values[R];
            ReadStaged<R>(staged[warp].values[e], values);
#pragma unroll
            for (int v = 0; v < V; ++v) {
#pragma unroll
              for (int r = 0; r < R; ++r) sums[l][r][v] += values[r] * x[kLanes * v];
            }
          }
          next[l] += count;
          __syncwarp();
        }
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int64_t column = first_column + lane + kLanes * v;
#pragma unroll
      for (int l = 0; l < L; ++l) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int64_t row = (first_line + l) * R + r;
          if (column >= a.batch || row >= a.weight.rows) continue;
          Finish(a.ending, sums[l][r][v], static_cast<int>(row), column * a.weight.rows + row, a.y);
        }
      }
    }
  }
}

}  // namespace sparsify::cuda

#endif  // SPARSIFY_CUDA_LINEAR_TILE_H_
