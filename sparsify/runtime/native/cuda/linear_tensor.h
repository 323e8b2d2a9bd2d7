// Many rows of X on tensor cores, for blocks of 8 and 16 rows of W. 32 rows of X ("columns") wait in shared
// memory, a tile of inputs at a time, while the warps of a block pass over their lines' entries in that tile.
// A line's entries, eight or sixteen at a time, are one side of an instruction as they stand in the file; the
// other side are the same inputs of 16 columns, gathered from shared memory.
//
//   grid   [ceil(batch / 32), ceil(lines / lines of a block), at most 65535]     block  [256]
#ifndef SPARSIFY_CUDA_LINEAR_TENSOR_H_
#define SPARSIFY_CUDA_LINEAR_TENSOR_H_

#include "device.h"
#include "tensor_core.h"

namespace sparsify::cuda {

// What is multiplied. kSplit: x, and float32 weights, as two TF32 numbers each, whose products are added up
// but for the smallest: 21 bits of a product are right. kTf32: both rounded to TF32. kHalf: x rounded to the
// weights' own 16 bits. Sums are float32.
enum class Operands { kSplit, kTf32, kHalf };

// Entries that an instruction takes.
template <Operands O>
inline constexpr int kEntries = O == Operands::kHalf ? 16 : 8;

// An input beyond the tile, always zero, stands for absent entries: so that no NaN comes of them. The stride
// puts the same input of eight columns into different banks.
inline constexpr int kNoInput = kTensorInputs;
inline constexpr int kTensorStride = kTensorInputs + 4;

struct TensorTile {
  alignas(16) float x[kTensorColumns][kTensorStride];
  alignas(16) int inputs[kTensorWarps][kLanes];  // of a warp's entries, in the tile
  int next[kTensorWarps][kLanes];                // entry of each of a warp's lines that has its turn
};

struct Lane {
  int warp, group, quad;  // g and q of tensor_core.h
};

// A number as two TF32 ones: the first 11 bits, and the rest, rounded. An infinity has no rest.
__device__ inline void Split(float x, uint32_t* high, uint32_t* low) {
  *high = BitsOf(x) & 0xffffe000u;
  const float first = FloatOf(*high);
  *low = RoundToTf32(x == first ? 0.0f : x - first);
}

template <Operands O>
__device__ inline float Staged32(float x) {
  return O == Operands::kTf32 ? FloatOf(RoundToTf32(x)) : x;
}

template <Operands O>
__device__ inline void LoadColumns(const LinearArguments& a, int64_t first_input, int64_t first_column,
                                   TensorTile* tile) {
  [[maybe_unused]] constexpr int kAtOnce = O == Operands::kHalf ? 1 : 2;  // more would spill
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  if (a.columns % 4 == 0 && reinterpret_cast<uintptr_t>(a.x) % 16 == 0) {
    constexpr int D = kTensorInputs / 4;
#pragma unroll kAtOnce
    for (int i = thread; i < D * kTensorColumns; i += threads) {
      const int input = i % D * 4, column = i / D;
      Pack<float, 4> pack{};
      if (first_input + input < a.columns && first_column + column < a.batch) {
        pack = *reinterpret_cast<const Pack<float, 4>*>(a.x + (first_column + column) * a.columns +
                                                        first_input + input);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) pack.at[n] = Staged32<O>(pack.at[n]);
      *reinterpret_cast<Pack<float, 4>*>(tile->x[column] + input) = pack;
    }
    return;
  }
#pragma unroll kAtOnce
  for (int i = thread; i < kTensorInputs * kTensorColumns; i += threads) {
    const int input = i % kTensorInputs, column = i / kTensorInputs;
    const bool inside = first_input + input < a.columns && first_column + column < a.batch;
    const float x = inside ? a.x[(first_column + column) * a.columns + first_input + input] : 0.0f;
    tile->x[column][input] = Staged32<O>(x);
  }
}

// Stages the inputs of up to 32 entries from `from` on that lie in the tile, and says how many these are.
__device__ inline int StageInputs(const Weight& weight, int from, int end, int first_input, int* inputs) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int input = lane < end - from ? Column(weight, from + lane) - first_input : kTensorInputs;
  const bool here = input < kTensorInputs;  // columns ascend: the first few lanes
  inputs[lane] = here ? static_cast<int>(input) : kNoInput;
  return __popc(__ballot_sync(kWholeWarp, here));
}

// Adds up to eight entries from `first` on to the sums [columns / 16][R / 8] of a line.
template <Operands O, int R>
__device__ inline void AddEight(const Weight& weight, const TensorTile& tile, const Lane& lane, int first,
                                int skipped, int count, float (&sums)[2][R / 8][4]) {
  constexpr int T = R / 8;
  uint32_t high[T][2], low[T][2];
  int inputs[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int entry = skipped + lane.quad + 4 * h;
    float values[T] = {};
    inputs[h] = tile.inputs[lane.warp][entry];
    if (entry < count)
      LoadValues<T>(weight, static_cast<int64_t>(first + entry) * R + T * lane.group, values);
#pragma unroll
    for (int t = 0; t < T; ++t) {
      if (O == Operands::kSplit) {
        Split(values[t], &high[t][h], &low[t][h]);
      } else {
        high[t][h] = RoundToTf32(values[t]);
      }
    }
  }
  const bool exact = weight.value_type != static_cast<int32_t>(csr::ValueType::kFloat32);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    uint32_t x[4], rest[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float taken = tile.x[16 * c + 8 * (i % 2) + lane.group][inputs[i / 2]];
      x[i] = BitsOf(taken);
      if (O == Operands::kSplit) Split(taken, &x[i], &rest[i]);
    }
#pragma unroll
    for (int t = 0; t < T; ++t) {
      if (O == Operands::kSplit) {
        MultiplyTf32(sums[c][t], rest, high[t]);
        if (!exact) MultiplyTf32(sums[c][t], x, low[t]);  // 16 bits leave no rest
      }
      MultiplyTf32(sums[c][t], x, high[t]);
    }
  }
}

// The same for up to sixteen entries of 16-bit values, as they stand in the file.
template <int R>
__device__ inline void AddSixteen(const Weight& weight, const TensorTile& tile, const Lane& lane, int first,
                                  int skipped, int count, float (&sums)[2][R / 8][4]) {
  constexpr int T = R / 8;
  using Values = Pack<uint16_t, T>;
  const auto* values = static_cast<const uint16_t*>(weight.values);
  uint32_t w[T][2];
  int inputs[4];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int entry = skipped + 2 * lane.quad + 8 * h;
    Values one{}, next{};
    const int64_t at = static_cast<int64_t>(first + entry) * R + T * lane.group;
    if (entry < count) one = *reinterpret_cast<const Values*>(values + at);
    if (entry + 1 < count) next = *reinterpret_cast<const Values*>(values + at + R);
#pragma unroll
    for (int t = 0; t < T; ++t) w[t][h] = one.at[t] | static_cast<uint32_t>(next.at[t]) << 16;
    inputs[2 * h] = tile.inputs[lane.warp][entry];
    inputs[2 * h + 1] = tile.inputs[lane.warp][entry + 1];
  }
  const bool bfloat16 = weight.value_type == static_cast<int32_t>(csr::ValueType::kBfloat16);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    uint32_t x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* column = tile.x[16 * c + 8 * (i % 2) + lane.group];
      const float one = column[inputs[i / 2 * 2]], next = column[inputs[i / 2 * 2 + 1]];
      x[i] = bfloat16 ? PackBfloat16(one, next) : PackFloat16(one, next);
    }
#pragma unroll
    for (int t = 0; t < T; ++t) {
      bfloat16 ? MultiplyBfloat16(sums[c][t], x, w[t]) : MultiplyFloat16(sums[c][t], x, w[t]);
    }
  }
}

template <Operands O, int R>
__device__ inline void Add(const Weight& weight, const TensorTile& tile, const Lane& lane, int first,
                           int skipped, int count, float (&sums)[2][R / 8][4]) {
  if constexpr (O == Operands::kHalf) {
    AddSixteen<R>(weight, tile, lane, first, skipped, count, sums);
  } else {
    AddEight<O, R>(weight, tile, lane, first, skipped, count, sums);
  }
}

// Stores the sums of a line. They pass through shared memory, 32 columns of R rows, so that neighbouring
// lanes write neighbouring numbers, and one loop finishes them all.
template <int R>
__device__ inline void StoreLine(const LinearArguments& a, const Lane& lane, int64_t line,
                                 int64_t first_column, const float (&sums)[2][R / 8][4], float* passing) {
  constexpr int T = R / 8, S = R + 1;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = 16 * c + 8 * (i / 2) + lane.group, row = T * (2 * lane.quad + i % 2);
#pragma unroll
      for (int t = 0; t < T; ++t) passing[column * S + row + t] = sums[c][t][i];
    }
  }
  __syncwarp();
#pragma unroll 1
  for (int i = 4 * lane.group + lane.quad; i < kTensorColumns * R; i += kLanes) {
    const int64_t column = first_column + i / R, row = line * R + i % R;
    if (column >= a.batch || row >= a.weight.rows) continue;
    Finish(a.ending, passing[i / R * S + i % R], static_cast<int>(row), column * a.weight.rows + row, a.y);
  }
  __syncwarp();
}

template <Operands O, int R, int V>
__device__ inline void LinearTensor(const LinearArguments& a) {
  constexpr int L = kTensorLines<R, V>, W = kTensorWarps;
  __shared__ TensorTile tile;
  const int thread = static_cast<int>(threadIdx.x), in_warp = thread % kLanes;
  const Lane lane = {thread / kLanes, in_warp / 4, in_warp % 4};
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * kTensorColumns;
  const int64_t groups = (a.weight.lines + L * W - 1) / (L * W);
  for (int64_t group = blockIdx.y; group < groups; group += gridDim.y) {
    const int64_t first_line = (group * W + lane.warp) * L;
    float sums[L][2][R / 8][4] = {};
    if (in_warp < L) {
      const bool inside = first_line + in_warp < a.weight.lines;
      tile.next[lane.warp][in_warp] = inside ? a.weight.pointers[first_line + in_warp] : 0;
    }
    for (int64_t input = 0; input < a.columns; input += kTensorInputs) {
      __syncthreads();
      LoadColumns<O>(a, input, first_column, &tile);
      if (thread < kTensorColumns) tile.x[thread][kNoInput] = 0.0f;
      __syncthreads();
#pragma unroll
      for (int l = 0; l < L; ++l) {
        const int end = first_line + l < a.weight.lines ? a.weight.pointers[first_line + l + 1] : 0;
        int next = tile.next[lane.warp][l], count = kLanes;
        while (count == kLanes && next < end) {
          count = StageInputs(a.weight, next, end, static_cast<int>(input), tile.inputs[lane.warp]);
          __syncwarp();
#pragma unroll 1
          for (int k = 0; k < count; k += kEntries<O>) {
            Add<O, R>(a.weight, tile, lane, next, k, count, sums[l]);
          }
          next += count;
          __syncwarp();
        }
        if (in_warp == 0) tile.next[lane.warp][l] = next;
      }
    }
    __syncthreads();  // the tile has been read: sums take its place
    float* passing = tile.x[0] + lane.warp * kTensorColumns * (R + 1);
#pragma unroll
    for (int l = 0; l < L; ++l) {
      if (first_line + l < a.weight.lines)
        StoreLine<R>(a, lane, first_line + l, first_column, sums[l], passing);
    }
  }
}

}  // namespace sparsify::cuda

#endif  // SPARSIFY_CUDA_LINEAR_TENSOR_H_
