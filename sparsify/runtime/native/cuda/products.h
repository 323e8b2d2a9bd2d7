// Sparse products on a device, launched on a stream of the caller's: y = activation(W x + bias + residual).
#ifndef SPARSIFY_CUDA_PRODUCTS_H_
#define SPARSIFY_CUDA_PRODUCTS_H_

#include <cstdint>

#include "../kernels/api.h"
#include "../kernels/csr/packed.h"
#include "arguments.h"
#include "device_module.h"
#include "precision.h"

namespace sparsify::cuda {

// The packed tensors behind the header, in device memory.
struct WeightAddresses {
  const void* pointers = nullptr;
  const void* columns = nullptr;
  const void* values = nullptr;
};

// Rows of X up to which the gather kernels run, and from which on blocks of 8 and 16 go to tensor cores.
inline constexpr int64_t kFewRows = 8;
inline constexpr int64_t kTensorRows = 16;

class Linear {
 public:
  // `matrix` is the checked weight, of which only sizes are kept.
  Linear(const Device& device, const LinearAttributes& attributes, const csr::Matrix& matrix,
         const WeightAddresses& at);
  // x [batch, in], y [batch, out] and what the epilogue points to are device memory. Returns at once.
  void Run(const float* x, int64_t batch, const Epilogue& epilogue, Precision precision, float* y,
           void* stream) const;

 private:
  void RunGather(const LinearArguments& arguments, void* stream) const;
  void RunTile(const LinearArguments& arguments, void* stream) const;
  void RunTensor(const LinearArguments& arguments, Precision precision, void* stream) const;

  const Device& device_;
  LinearAttributes attributes_;
  Weight weight_;
  int block_rows_;
  int64_t entries_;               // blocks of a line in the mean
  Function gather_[2], tile_[2];  // for 1 and 4 rows, for 32 and 64
  Function tensor_[3][3] = {};    // by precision, for 16, 32 and 64 rows of W a warp
};

class Conv {
 public:
  Conv(const Device& device, const ConvAttributes& attributes, const csr::Matrix& matrix,
       const WeightAddresses& at);
  // False where the input is smaller than the dilated kernel, or too large to index.
  bool OutputSize(int64_t height, int64_t width, int64_t* out_height, int64_t* out_width) const;
  // Only for sizes that OutputSize accepts.
  void Run(const float* x, int64_t batch, int64_t height, int64_t width, const Epilogue& epilogue, float* y,
           void* stream) const;

 private:
  const Device& device_;
  ConvAttributes attributes_;
  Weight weight_;
  Function conv_[2];  // for 32 and 64 pixels
};

}  // namespace sparsify::cuda

#endif  // SPARSIFY_CUDA_PRODUCTS_H_
