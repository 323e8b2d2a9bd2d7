// What the adapters (ONNX Runtime, C ABI) see of the kernels: raw pointers in, raw pointers out.
//
// A kernel object is built once from the packed tensors of a node, which it checks and then refers to: they
// must stay in place, unchanged, as long as it lives. Run may be called from several threads at once, each
// call with scratch memory of its own; what Run derives from the packed tensors on first use is kept, and the
// pages of packed tensors that are not read any more are given back to the system (see base/pages.h).
#ifndef SPARSIFY_KERNELS_API_H_
#define SPARSIFY_KERNELS_API_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "epilogue.h"
#include "rows.h"

namespace sparsify {

// Numbered like ONNX's TensorProto.DataType (and ONNXTensorElementDataType).
enum class ElementType : int32_t { kFloat = 1, kUint8 = 2, kUint16 = 4, kInt32 = 6 };

// One packed tensor of a node, flattened.
struct PackedTensor {
  const void* data = nullptr;
  ElementType type = ElementType::kFloat;
  int64_t size = 0;  // elements
};

struct LinearAttributes {
  int64_t out_features = 0;
  int64_t in_features = 0;
};

struct ConvAttributes {
  int64_t out_channels = 0;
  int64_t in_channels = 0;
  int64_t kernel[2] = {1, 1};      // height, width
  int64_t strides[2] = {1, 1};     // vertical, horizontal
  int64_t pads[4] = {0, 0, 0, 0};  // ONNX order: top, left, bottom, right
  int64_t dilations[2] = {1, 1};
};

// How a kernel runs its tasks. `run` calls task(argument, i) once for every i in [0, count), in any order and
// on any thread, and returns when all have ended. `threads` is the number of threads that may take part: it
// decides how finely work is cut, so an estimate is good enough; 1 never calls `run`.
struct ParallelFor {
  void (*run)(void* context, size_t count, void (*task)(void* argument, size_t index),
              void* argument) = nullptr;
  void* context = nullptr;
  int threads = 1;
};

class LinearKernel {
 public:
  virtual ~LinearKernel() = default;
  virtual const LinearAttributes& attributes() const = 0;
  // Bytes of scratch memory that Run needs for this many rows.
  virtual size_t ScratchBytes(int64_t rows, int threads) const = 0;
  // x [rows, in_features] and y [rows, out_features] are row-major and must not overlap. `scratch` holds
  // ScratchBytes(rows, parallel.threads) bytes at any alignment and need not be initialised.
  virtual void Run(const float* x, int64_t rows, const Epilogue& epilogue, float* y,
                   const ParallelFor& parallel, void* scratch) const = 0;
};

// Two linear layers, one behind the other: y = second(first(x)).
class FeedForwardKernel {
 public:
  virtual ~FeedForwardKernel() = default;
  virtual const LinearAttributes& first() const = 0;
  virtual const LinearAttributes& second() const = 0;
  virtual size_t ScratchBytes(int64_t rows, int threads) const = 0;
  // x [rows, first().in_features] and y [rows, second().out_features] must not overlap. The first layer has
  // no residual.
  virtual void Run(const float* x, int64_t rows, const Epilogue& first_epilogue,
                   const Epilogue& second_epilogue, float* y, const ParallelFor& parallel,
                   void* scratch) const = 0;
};

class ConvKernel {
 public:
  virtual ~ConvKernel() = default;
  virtual const ConvAttributes& attributes() const = 0;
  // Output height and width; false when the input is smaller than the dilated kernel or too large to index.
  virtual bool OutputSize(int64_t height, int64_t width, int64_t* out_height, int64_t* out_width) const = 0;
  virtual size_t ScratchBytes(int64_t batch, int64_t height, int64_t width, int threads) const = 0;
  // x [batch, in_channels, height, width], y [batch, out_channels, out_height, out_width]; no overlap. Only
  // for sizes that OutputSize accepts.
  virtual void Run(const float* x, int64_t batch, int64_t height, int64_t width, const Epilogue& epilogue,
                   float* y, const ParallelFor& parallel, void* scratch) const = 0;
  // The same convolution on maps in rows of this width (see rows.h); null where they do not suit it. It holds
  // a form of the weight of its own and lives as long as somebody keeps it.
  virtual std::shared_ptr<const RowConv> Rows(int64_t width) const {
    static_cast<void>(width);
    return nullptr;
  }
};

// Build a kernel for `layout` ("csr"). `kernel` names an instruction set of the table (see KernelName) or is
// null for the best one that this CPU runs; the environment variable SPARSIFY_KERNEL overrides null. Return
// null and a sentence in *error for an unknown layout or kernel, bad attributes, or corrupt packed tensors.
std::unique_ptr<LinearKernel> CreateLinear(const char* layout, const char* kernel,
                                           const LinearAttributes& attributes, const PackedTensor* tensors,
                                           size_t count, std::string* error);
// The packed tensors of one layer.
struct PackedLayer {
  const char* layout = nullptr;
  LinearAttributes attributes;
  const PackedTensor* tensors = nullptr;
  size_t count = 0;
};
std::unique_ptr<FeedForwardKernel> CreateFeedForward(const char* kernel, const PackedLayer& first,
                                                     const PackedLayer& second, std::string* error);
std::unique_ptr<ConvKernel> CreateConv(const char* layout, const char* kernel,
                                       const ConvAttributes& attributes, const PackedTensor* tensors,
                                       size_t count, std::string* error);

// Whether a convolution is possible, whatever its weights; a sentence in *error where not.
bool CheckConv(const ConvAttributes& attributes, std::string* error);

// The table of instruction sets, best last; "scalar" is always there.
size_t KernelCount();
const char* KernelName(size_t index);
bool KernelSupported(size_t index);  // by the CPU that this runs on

}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_API_H_
