// What happens to an output element on its last write.
#ifndef SPARSIFY_KERNELS_EPILOGUE_H_
#define SPARSIFY_KERNELS_EPILOGUE_H_

#include <cstdint>

namespace sparsify {

// y = activation(W x + bias + residual). kGelu is the exact one (erf), kGeluTanh the tanh approximation,
// kSilu x * sigmoid(x), kClip min(max(x, low), high).
enum class Activation : int32_t { kNone = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kSilu = 4, kClip = 5 };
constexpr int32_t kActivations = 6;

// Null pointers mean absent.
struct Epilogue {
  const float* bias = nullptr;      // [out]
  const float* residual = nullptr;  // the shape of y; may be y itself
  Activation activation = Activation::kNone;
  float low = 0.0f;  // of kClip
  float high = 0.0f;
};

}  // namespace sparsify

#endif  // SPARSIFY_KERNELS_EPILOGUE_H_
