// The entry points on the GPU: `<kind>_<R>_<variant>`, for R = 1, 2, 4, 8, 16 rows of a block (1 is csr).
#include "conv.h"
#include "linear_gather.h"
#include "linear_tensor.h"
#include "linear_tile.h"

namespace sparsify::cuda {

// Blocks of a multiprocessor that registers must leave room for: up to 85 registers a thread, or 128.
inline constexpr int kTileBlocks = 3;
inline constexpr int kConvBlocks = 2;
inline constexpr int kTensorBlocks = 2;

#define SPARSIFY_CUDA_KERNELS(R)                                                                         \
  extern "C" __global__ void __launch_bounds__(kGatherWarps* kLanes) gather_##R##_1(LinearArguments a) { \
    LinearGather<R, 1>(a);                                                                               \
  }                                                                                                      \
  extern "C" __global__ void __launch_bounds__(kGatherWarps* kLanes) gather_##R##_4(LinearArguments a) { \
    LinearGather<R, 4>(a);                                                                               \
  }                                                                                                      \
  extern "C" __global__ void __launch_bounds__(kTileWarps<R>* kLanes, kTileBlocks)                       \
      tile_##R##_1(LinearArguments a) {                                                                  \
    LinearTile<R, 1>(a);                                                                                 \
  }                                                                                                      \
  extern "C" __global__ void __launch_bounds__(kTileWarps<R>* kLanes, kTileBlocks)                       \
      tile_##R##_2(LinearArguments a) {                                                                  \
    LinearTile<R, 2>(a);                                                                                 \
  }                                                                                                      \
  extern "C" __global__ void __launch_bounds__(kConvWarps* kLanes, kConvBlocks)                          \
      conv_##R##_1(ConvArguments a) {                                                                    \
    Conv<R, 1>(a);                                                                                       \
  }                                                                                                      \
  extern "C" __global__ void __launch_bounds__(kConvWarps* kLanes, kConvBlocks)                          \
      conv_##R##_2(ConvArguments a) {                                                                    \
    Conv<R, 2>(a);                                                                                       \
  }

SPARSIFY_CUDA_KERNELS(1)
SPARSIFY_CUDA_KERNELS(2)
SPARSIFY_CUDA_KERNELS(4)
SPARSIFY_CUDA_KERNELS(8)
SPARSIFY_CUDA_KERNELS(16)

#define SPARSIFY_CUDA_TENSOR_KERNEL(KIND, OPERANDS, R, V)                           \
  extern "C" __global__ void __launch_bounds__(kTensorWarps* kLanes, kTensorBlocks) \
      KIND##_##R##_##V(LinearArguments a) {                                         \
    LinearTensor<Operands::OPERANDS, R, V>(a);                                      \
  }
#define SPARSIFY_CUDA_TENSOR_KERNELS(R, V)         \
  SPARSIFY_CUDA_TENSOR_KERNEL(split, kSplit, R, V) \
  SPARSIFY_CUDA_TENSOR_KERNEL(tf32, kTf32, R, V)   \
  SPARSIFY_CUDA_TENSOR_KERNEL(half, kHalf, R, V)

SPARSIFY_CUDA_TENSOR_KERNELS(8, 1)
SPARSIFY_CUDA_TENSOR_KERNELS(8, 2)
SPARSIFY_CUDA_TENSOR_KERNELS(8, 4)
SPARSIFY_CUDA_TENSOR_KERNELS(16, 1)
SPARSIFY_CUDA_TENSOR_KERNELS(16, 2)
SPARSIFY_CUDA_TENSOR_KERNELS(16, 4)

}  // namespace sparsify::cuda
