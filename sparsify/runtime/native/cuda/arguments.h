// What the kernels on the GPU are given: one plain structure by value, the same for device and host
// compilers.
//
// All pointers are device memory. docs/design/cuda-runtime.md describes the kernels.
#ifndef SPARSIFY_CUDA_ARGUMENTS_H_
#define SPARSIFY_CUDA_ARGUMENTS_H_

#include <cstdint>

namespace sparsify::cuda {

inline constexpr int kLanes = 32;            // of a warp
inline constexpr int kGatherWarps = 4;       // of a block of the gather kernels
inline constexpr int kConvWarps = 8;         // of a block of the convolution kernels
inline constexpr int kTileElements = 256;    // inputs of a tile times its groups of 32 columns
inline constexpr int kMostGridRows = 65535;  // of CUDA, in the grid's second direction

// Warps of a block of the tile kernels: 16 rows of a block take twice the shared memory of 8.
constexpr int TileWarps(int block_rows) { return block_rows == 16 ? 4 : 8; }
// Block rows that a warp of the tile kernels sums at once.
constexpr int TileLines(int block_rows) { return block_rows < 8 ? 8 / block_rows : 1; }
// The same as constants, which device code may use.
template <int R>
inline constexpr int kTileWarps = TileWarps(R);
template <int R>
inline constexpr int kTileLines = TileLines(R);

// The tensor-core kernels: blocks of 8 or 16 rows of W, on 32 rows of X, a tile of inputs at a time.
inline constexpr int kTensorWarps = 8;
inline constexpr int kTensorColumns = 32;
inline constexpr int kTensorInputs = 256;
// Block rows that a warp sums at once, for `sixteens` groups of 16 rows of W.
constexpr int TensorLines(int block_rows, int sixteens) { return 16 * sixteens / block_rows; }
template <int R, int V>
inline constexpr int kTensorLines = TensorLines(R, V);

// A packed weight as it stands in the file; see kernels/csr/packed.h.
struct Weight {
  const int32_t* pointers;  // [lines + 1]
  const void* columns;      // uint16 or int32
  const void* values;       // float32, or 16 bits
  int32_t narrow;           // whether columns are uint16
  int32_t value_type;       // csr::ValueType
  int32_t lines;            // block rows
  int32_t rows;
};

// y = activation(W x + bias + residual); null pointers mean absent.
struct Ending {
  const float* bias;
  const float* residual;
  int32_t activation;  // sparsify::Activation
  float low, high;
};

struct LinearArguments {
  Weight weight;
  Ending ending;
  const float* x;  // [batch, columns]
  float* y;        // [batch, rows]
  int64_t batch;
  int64_t columns;
  int32_t warps_per_line;  // of the gather kernels: 1 or all of a block
};

struct ConvArguments {
  Weight weight;
  Ending ending;
  const float* x;  // [batch, channels, height, width]
  float* y;        // [batch, rows, out_height, out_width]
  int64_t batch;
  int64_t channels;
  int32_t height, width, out_height, out_width;
  int32_t kernel[2], strides[2], pads[2], dilations[2];  // vertical, horizontal; pads: top, left
};

}  // namespace sparsify::cuda

#endif  // SPARSIFY_CUDA_ARGUMENTS_H_
