// A sparse layer under training: a topology that stays for many steps, and values that are new at each.
//
// The weight stays where it is, dense with zeros, so that optimizers and masks need not know. Gather brings
// its active values into the order in which they are visited; the gradient is written back the same way.
#ifndef SPARSIFY_KERNELS_TRAIN_LAYER_H_
#define SPARSIFY_KERNELS_TRAIN_LAYER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "../api.h"

namespace sparsify {
namespace train {

// What Backward computes; null pointers mean not wanted.
struct Gradients {
  float* input = nullptr;   // the shape of x
  float* weight = nullptr;  // [rows, columns]; zero outside the active positions
  float* bias = nullptr;    // [rows]; only beside that of the weight
  bool zeroed = false;      // weight is zero outside the active positions already
};

// Safe from several threads. A convolution's weight is the matrix [out, in * kh * kw].
class Layer {
 public:
  virtual ~Layer() = default;
  virtual int64_t count() const = 0;  // active positions
  // values [count] from a weight [rows, columns], in an order of the layer's own.
  virtual void Gather(const float* weight, float* values, const ParallelFor& parallel) const = 0;
};

class LinearLayer : public Layer {
 public:
  // x [batch, columns], y and dy [batch, rows], all row-major. bias may be null.
  virtual void Forward(const float* x, int64_t batch, const float* values, const float* bias, float* y,
                       const ParallelFor& parallel) const = 0;
  virtual void Backward(const float* x, int64_t batch, const float* dy, const float* values,
                        const Gradients& gradients, const ParallelFor& parallel) const = 0;
};

struct ImageBatch {
  int64_t count, height, width;
};

class ConvLayer : public Layer {
 public:
  // x [count, in_channels, height, width], y and dy [count, out_channels, ...]. bias may be null. False where
  // the images are too small or too large.
  virtual bool OutputSize(int64_t height, int64_t width, int64_t* out_height, int64_t* out_width) const = 0;
  virtual void Forward(const float* x, const ImageBatch& images, const float* values, const float* bias,
                       float* y, const ParallelFor& parallel) const = 0;
  virtual void Backward(const float* x, const ImageBatch& images, const float* dy, const float* values,
                        const Gradients& gradients, const ParallelFor& parallel) const = 0;
};

// positions: active ones, row * columns + column, ascending. kernel: a name of the kernel table, or null for
// the best. threads: as many as will mostly run it. Null and a sentence in *error where the arguments make no
// sense.
std::unique_ptr<LinearLayer> MakeLinearLayer(const char* kernel, int64_t rows, int64_t columns,
                                             const int64_t* positions, int64_t count, int threads,
                                             std::string* error);

// The same for a weight [out_channels, in_channels * kernel height * kernel width].
std::unique_ptr<ConvLayer> MakeConvLayer(const char* kernel, const ConvAttributes& attributes,
                                         const int64_t* positions, int64_t count, int threads,
                                         std::string* error);

}  // namespace train
}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_TRAIN_LAYER_H_
